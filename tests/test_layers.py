"""Does every module import only what its layer may, and do files stay small and well named?"""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lm", "data_pipeline", "configs")

# A module of ours -> its layer. A module imports modules of its own layer or of lower ones.
LAYERS = {
    "lm.config": 0, "lm.check": 0, "lm.check_adapting": 0, "lm.check_sizes": 0, "lm.resume": 0, "lm.batch": 0, "lm.peers": 0, "lm.memory": 0, "data_pipeline.config": 0, "data_pipeline.schema": 0,
    "lm.hf": 0, "lm.hf.names": 0, "lm.hf.families": 0, "lm.hf.source": 0, "lm.hf.config_json": 0, "lm.hf.tensors": 0,
    "lm.hf.safetensors_header": 0, "lm.hf.gguf_header": 0, "lm.hf.gguf_metadata": 0, "lm.hf.gguf_rope": 0,
    "lm.hf.gguf_config": 0, "lm.hf.gguf_tokenizer": 0, "lm.hf.gguf_file": 0, "lm.hf.vocabulary": 0,
    "lm.mup": 1, "lm.params": 1, "lm.aot": 1, "lm.collectives": 1, "lm.sharding": 1, "lm.metrics": 1, "lm.hosts": 1, "lm.lease": 1,
    "lm.clock": 1, "lm.profile": 1, "lm.hf.weights": 1,
    "lm.model": 2, "lm.model.adapters": 2, "lm.model.codes": 2, "lm.model.rope": 2, "lm.model.products": 2,
    "lm.model.formula": 2, "lm.model.layers": 2, "lm.model.pieces": 2,
    "lm.model.grouped": 2, "lm.model.experts": 2, "lm.model.kernels": 2, "lm.model.attention": 2, "lm.model.transformer": 2,
    "lm.calibration": 0, "lm.scores": 0, "lm.decisions": 0, "lm.score_report": 0, "lm.confusion_plot": 0, "lm.baselines": 0,
    "lm.text_measures": 0, "lm.text_scores": 7, "lm.classify": 7,
    "lm.losses": 3, "lm.anchor": 3, "lm.optim": 3, "lm.sampling": 3, "lm.step": 3,
    "lm.checkpoint": 4,
    "lm.run_folder": 5, "lm.forgetting": 5, "lm.interpolate": 5, "lm.chat": 5, "lm.choices": 5,
    "lm.evaluate": 5, "lm.generate": 5, "lm.likelihood": 5, "lm.logger": 5,
    "lm.peft_folder": 4, "lm.lora": 5, "lm.serve": 5, "lm.serve.errors": 5, "lm.serve.answer": 5, "lm.serve.slots": 5, "lm.serve.engine": 5,
    "lm.serve.wire": 5, "lm.serve.exchange": 5, "lm.serve.app": 5, "lm.serve.__main__": 5,
    "lm.run": 6, "lm.train": 6,
    "lm.receipt": 7, "lm.plan": 7, "lm.parts": 7, "lm.start": 7, "lm.phases": 7, "lm.build": 7, "lm.summary": 7, "lm.show": 7, "lm.range_test": 7,
    "lm.offer": 7, "lm.trials": 7, "lm.probes": 7, "lm.choose_layers": 7,
    "lm.hf.folder": 7, "lm.hf.verify": 7, "lm.hf.verify_classes": 7, "lm.hf.tokenizer_json": 7, "lm.hf.__main__": 7,
    "lm.sweep": 0, "lm.sweep.space": 0, "lm.sweep.folds": 0, "lm.sweep.journal": 1, "lm.sweep.ask": 1, "lm.sweep.race": 1,
    "lm.sweep.program": 7, "lm.sweep.fold_run": 7, "lm.sweep.work": 7, "lm.sweep.winner": 7, "lm.sweep.report": 7,
    "lm.sweep.conduct": 7, "lm.sweep.__main__": 7,
}  # fmt: skip
COMMANDS = {
    "lm.hf.folder",
    "lm.hf.verify",
    "lm.hf.verify_classes",
    "lm.hf.tokenizer_json",
    "lm.text_scores",
    "lm.classify",
}  # what entry points alone import, and which may import what they may
EXTRAS = (
    "lm.choices",
    "lm.interpolate",
    "lm.lora",
    "lm.serve",
    "lm.sweep",
)  # which the core never imports, nor they each other
SCHEMA = {"data_pipeline.config", "data_pipeline.schema"}
FOR_LM = {"data_pipeline.check", "data_pipeline.machine", *SCHEMA}
FOR_CONFIGS = {"lm.config", "lm.sweep.space", *SCHEMA}

# A library of others -> the modules that may import it (a package stands for all in it).
LIBRARIES = {
    "flax": ("lm.model", "lm.checkpoint"),
    "optax": ("lm.losses", "lm.anchor", "lm.optim", "lm.step", "lm.probes", "lm.trials"),
    "orbax": ("lm.checkpoint",),
    "tensorboardX": ("lm.logger",),
    "matplotlib": ("lm.logger", "lm.confusion_plot", "lm.sweep.report", "lm.range_test"),
    "optuna": ("lm.sweep.journal",),
    "sklearn": ("lm.baselines",),
    "sacrebleu": ("lm.text_measures",),
    "tensorflow": ("data_pipeline",),
    "tensorflow_datasets": ("data_pipeline",),
    "sentencepiece": ("data_pipeline",),
    "tokenizers": ("data_pipeline", "lm.hf"),
    "gguf": ("lm.hf",),
    "jinja2": ("data_pipeline",),
    "cryptography": ("data_pipeline",),
    "apache_beam": ("data_pipeline",),
    "resiliparse": ("data_pipeline.page",),
    "brotli": ("data_pipeline.http_message",),
    "google_crc32c": ("data_pipeline.tfrecord",),
    "pyarrow": ("data_pipeline",),
    "array_record": ("data_pipeline",),
    "yaml": ("data_pipeline.hf_dataset",),
    "ml_collections": ("data_pipeline.schema", "configs"),
    "absl": (),
    "uvicorn": (),
    "transformers": (),
    "torch": (),
}
INSIDE_FUNCTIONS = {
    "tensorflow", "tensorflow_datasets", "sentencepiece", "tokenizers", "gguf", "jinja2", "matplotlib",
    "tensorboardX", "cryptography", "apache_beam", "resiliparse", "brotli", "google_crc32c", "pyarrow", "array_record",
    "yaml", "sklearn", "sacrebleu", "optuna",
}  # fmt: skip
NO_JAX = {module for module, layer in LAYERS.items() if layer == 0}
DRAWERS = {
    "utils.py",
    "util.py",
    "common.py",
    "helpers.py",
    "helper.py",
    "misc.py",
    "manager.py",
    "tools.py",
    "core.py",
}
MAX_LINES = 350


def module_files():
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_name(path.relative_to(ROOT)): path for path in [*files, ROOT / "launch.py"]}


def module_name(path):
    parts = list(path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module, packages):
    return any(module == package or module.startswith(package + ".") for package in packages)


def is_entry(module, function):
    return function.name == "main" or (module == "launch" and function.name == "run")


def find_imports(module, source, known, is_package=False):
    """Yields (line, target module, at module level, inside an entry point) of every import in `source`."""

    def resolve(base, names):
        for name in names:
            yield f"{base}.{name}" if f"{base}.{name}" in known else base

    def walk(node, top, entry):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield child.lineno, alias.name, top, entry
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = module.split(".")
                    above = above[: len(above) - child.level + is_package]
                    base = ".".join([*above, *([base] if base else [])])
                for target in resolve(base, [alias.name for alias in child.names]):
                    yield child.lineno, target, top, entry
            elif isinstance(child, ast.Call) and child.args and isinstance(child.args[0], ast.Constant):
                called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
                if called in ("import_module", "__import__"):
                    yield child.lineno, str(child.args[0].value), top, entry
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            enters = isinstance(child, ast.FunctionDef) and top and is_entry(module, child)
            yield from walk(child, top and not inside, entry or enters)

    yield from walk(ast.parse(source), True, False)


def find_faults(module, source, known, is_package=False):
    """Returns one line for each import in `source` that the layer of `module` does not allow."""
    faults = []
    package = module.split(".")[0]
    if package == "lm" and module not in LAYERS and module != "lm":
        return [f"{module}: not in LAYERS; give it a layer"]
    for line, target, top, entry in find_imports(module, source, known, is_package):
        library = target.split(".")[0]
        ours = library in PACKAGES or library == "launch"
        where = f"{module}:{line}: imports {target}"
        if not ours and top and library in INSIDE_FUNCTIONS:
            faults.append(f"{where} at module level")
        if entry or package == "launch" or module in COMMANDS:
            continue
        if not ours:
            if library in LIBRARIES and not within(module, LIBRARIES[library]):
                faults.append(f"{where}, which only {', '.join(LIBRARIES[library]) or 'entry points'} may")
            if library in ("jax", "jaxlib") and (package != "lm" or module in NO_JAX):
                faults.append(f"{where}, but it must do without jax")
        elif package == "configs":
            if target not in FOR_CONFIGS and library != "configs":
                faults.append(f"{where}; a config may import {', '.join(sorted(FOR_CONFIGS))} and configs")
        elif package == "data_pipeline":
            if library != "data_pipeline":
                faults.append(f"{where}; data_pipeline may import only itself")
        elif library == "data_pipeline":
            if target not in FOR_LM:
                faults.append(f"{where}; lm may import only {', '.join(sorted(FOR_LM))}")
        elif target == "lm":
            if module != "lm":
                faults.append(f"{where} as a whole")
        elif library != "lm" or target not in LAYERS:
            faults.append(f"{where}, which has no layer")
        elif target in COMMANDS:
            faults.append(f"{where}, which only entry points may")
        elif LAYERS[module] < LAYERS["lm.build"] and any(
            within(target, (extra,)) and not within(module, (extra,)) for extra in EXTRAS
        ):
            faults.append(f"{where}, an extra, which the core does without")
        elif module != "lm" and LAYERS[target] > LAYERS[module]:
            faults.append(f"{where}: layer {LAYERS[module]} may not import layer {LAYERS[target]}")
    return faults


def forbidden_by_name(module, source, known):
    """lm.step knows no model, and the package itself imports nothing."""
    targets = {target for _, target, _, entry in find_imports(module, source, known) if not entry}
    if module == "lm.step":
        return [t for t in targets if within(t, ("lm.model",))]
    return [t for t in targets if t != "__future__"] if module == "lm" else []


def test_imports_follow_the_layers():
    files = module_files()
    faults = []
    for module, path in files.items():
        source, is_package = path.read_text(), path.name == "__init__.py"
        faults += find_faults(module, source, files, is_package)
        faults += [f"{module}: may not import {target}" for target in forbidden_by_name(module, source, files)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("lm.config", "import jax", "without jax"),
        ("data_pipeline.clean", "import jax.numpy as jnp", "without jax"),
        ("data_pipeline.clean", "from lm.config import Config", "only itself"),
        (
            "data_pipeline.clean",
            "def f():\n    import importlib\n    importlib.import_module('lm.config')",
            "only itself",
        ),
        ("data_pipeline.clean", "import tensorflow as tf", "module level"),
        ("data_pipeline.clean", "class A:\n    import sentencepiece", "module level"),
        ("data_pipeline.clean", "if True:\n    import tensorflow_datasets", "module level"),
        ("lm.params", "from lm.optim import read_tables", "layer 1 may not import layer 3"),
        ("lm.params", "def f():\n    from lm import train", "layer 1 may not import layer 6"),
        ("lm.model.layers", "from . import attention\nfrom ..params import Params\nfrom ..train import Run", "layer 6"),
        ("lm.sharding", "import flax.linen as nn", "only lm.model, lm.checkpoint"),
        ("lm.train", "from optax import adamw", "only lm.losses"),
        ("lm.train", "def f():\n    import orbax.checkpoint", "only lm.checkpoint"),
        ("lm.train", "def f():\n    import tensorflow", "only data_pipeline"),
        ("lm.train", "from data_pipeline.batch import open_data", "lm may import only"),
        ("lm.train", "from data_pipeline import batch", "lm may import only"),
        ("lm.train", "def f():\n    def main():\n        from data_pipeline import batch", "lm may import only"),
        ("lm.evaluate", "from lm.serve.engine import Engine", "an extra"),
        ("lm.serve.app", "from lm.train import Run", "layer 5 may not import layer 6"),
        ("lm.serve.app", "def f():\n    import uvicorn", "only entry points"),
        ("lm.drawer", "", "give it a layer"),
        ("lm.evaluate", "from lm.lora import merge", "an extra"),
        ("configs.x", "from lm.optim import make_schedule", "a config may import"),
        ("configs.x", "import jax", "without jax"),
    ],
)
def test_the_walk_sees_what_is_forbidden(module, source, word):
    known = {**module_files(), "data_pipeline.batch": None}
    assert any(word in fault for fault in find_faults(module, source, known)), find_faults(module, source, known)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lm.evaluate", "def main(argv):\n    from data_pipeline.batch import open_data\n    from lm import build"),
        ("launch", "def run():\n    from lm import build\n    import jax"),
        ("data_pipeline.tokenizer", "def f():\n    import sentencepiece"),
        ("data_pipeline.show", "def main(argv):\n    from lm.config import Config"),
        ("lm.config", "from data_pipeline.schema import diff"),
        ("configs.x", "from configs import base\nfrom data_pipeline.schema import to_config_dict"),
    ],
)
def test_the_walk_lets_pass_what_is_allowed(module, source):
    assert find_faults(module, source, module_files()) == []


def test_every_layered_module_exists():
    assert set(LAYERS) - set(module_files()) == set()


def test_lm_step_knows_no_model():
    assert forbidden_by_name("lm.step", "from lm.model.transformer import Model", module_files())


def loaded_after(statements, *names):
    """Runs `statements` in a fresh interpreter; returns which of `names` were imported by it."""
    code = f"{statements}\nimport sys\nprint([n for n in {names!r} if n in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


def import_all(package):
    names = [module for module in module_files() if within(module, (package,))]
    return "import " + ", ".join(sorted(names))


def test_importing_a_config_takes_no_jax_and_no_tensorflow():
    assert loaded_after(import_all("configs"), "jax", "flax", "tensorflow") == []


def test_importing_lm_train_takes_no_tensorflow():
    assert loaded_after("import lm.train", "jax", "tensorflow", "transformers") == ["jax"]


def test_importing_the_data_pipeline_takes_no_jax_and_no_tensorflow():
    assert (
        loaded_after(import_all("data_pipeline"), "jax", "flax", "tensorflow", "sentencepiece", "tokenizers", "jinja2")
        == []
    )


def test_files_are_small_and_named_by_the_question_they_answer():
    faults = []
    for path in module_files().values():
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            faults.append(f"{path.relative_to(ROOT)} has {lines} lines, the limit is {MAX_LINES}: split it by question")
        if path.name in DRAWERS:
            faults.append(f"{path.relative_to(ROOT)}: a drawer; name a file by the question it answers")
    assert not faults, "\n".join(faults)


def test_every_package_is_installed():
    """An editable install finds what pyproject.toml forgot; a wheel does not."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {module_name(p.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("__init__.py")}
    assert set(listed) == there
