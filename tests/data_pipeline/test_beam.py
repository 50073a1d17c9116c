"""Do the stages give the same bytes whoever runs them, Apache Beam too, and does what is wrong with one come back as a line?"""

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.config import CleanConfig
from data_pipeline.dedup.stages import one_by_one
from data_pipeline.prepare import build
from data_pipeline.prepare.__main__ import main
from data_pipeline.prepare.beam import open_beam, run_job
from data_pipeline.schema import ConfigError, UserError
from tests.data_pipeline.test_stages import PART, SCRIPT, hashes
from tests.data_pipeline.test_stages import rows as rows
from tests.data_pipeline.work_folder import count_done

NEAR = CleanConfig(near_dedup=0.8)


@pytest.fixture
def made(config, rows, monkeypatch):
    """Returns the configuration of `rows` and a function that prepares them: {file: sha256}."""
    monkeypatch.setattr(build, "PART_BYTES", PART)
    made = config(rows, on_bad="skip", max_bad_fraction=0.1, clean=NEAR)
    return made, lambda out, *how: hashes(build.prepare_to(out, made, *(how or (1, print))).folder)


def elsewhere(work, stop=10**9):
    """Runs jobs last first, on copies of what they are given, as another process would; after `stop` jobs it breaks off."""
    done = 0

    def each(function, jobs):
        nonlocal done
        for function_, job in reversed([pickle.loads(pickle.dumps((function, job))) for job in jobs]):
            if done == stop:
                raise UserError("broken off")
            done += 1
            one_by_one(function_, [job])

    return each


def test_every_stage_goes_through_the_seam_and_any_runner_goes_on_where_another_stopped(made, tmp_path):
    _, prepare = made
    expected = prepare(tmp_path / "expected")
    assert prepare(tmp_path / "elsewhere", 1, print, elsewhere) == expected
    out = tmp_path / "out"
    for stop in (3, 9, 9):
        with pytest.raises(UserError, match="broken off"):
            prepare(out, 1, print, lambda work, stop=stop: elsewhere(work, stop))
    assert (
        len(list(tmp_path.glob(".out.*/work/read/*.done"))) == len(list(tmp_path.glob(".out.*/work/near/*.docs"))) == 8
    )
    assert prepare(out, 2, print) == expected


def test_a_job_leaves_what_is_wrong_and_those_after_it_are_not_begun(tmp_path):
    begun = []

    def job(number):
        begun.append(number)
        if number == 2:
            raise ConfigError("two")
        if number == 4:
            raise OSError(28, "No space left on device", "/full")

    jobs = [(number,) for number in range(6)]
    for number in (4, 5, 2, 3, 0):
        run_job(number, tmp_path, "", job, jobs)
    assert begun == [4, 2, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002.json", "00000004.json"]
    with pytest.raises(RuntimeError, match="all workers must see the same folders"):
        run_job(0, tmp_path / "gone", "", job, jobs)


def test_flags_that_cannot_be_are_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    config = "--config=configs/corpus.py"
    for flags, words in [
        (["--out=o", "--runner=beam"], r'pip install "lm\[beam\]"'),
        (["--out=o", "--runner=DirectRunner"], "must be local or beam"),
        (["--runner=beam"], "goes with --out"),
        (["--out=o", "--beam_options=--x"], "goes with --runner=beam"),
    ]:
        with pytest.raises(ConfigError, match=words):
            main([config, f"--config.data.path={tmp_path}", *flags])


@pytest.mark.slow
def test_beam_makes_the_bytes_that_processes_make(made, tmp_path):
    pytest.importorskip("apache_beam")
    _, prepare = made
    expected = prepare(tmp_path / "expected")
    for workers in (1, 2):
        assert prepare(tmp_path / f"beam{workers}", 1, print, open_beam("", workers)) == expected


@pytest.mark.slow
def test_what_beam_or_a_worker_refuses_is_one_line(made, rows, tmp_path):
    pytest.importorskip("apache_beam")
    for flags, words in [
        ("--direct_num_workers=x", "refuses the flags"),
        ("--runner=NoRunner", "Unexpected pipeline runner|refuses the flags"),
        ("--flinkmaster=x", "no flag --flinkmaster"),
    ]:
        with pytest.raises(ConfigError, match=words):
            open_beam(flags, 1)
    with pytest.raises(ConfigError, match="--workers is for this machine"):
        open_beam("--runner=FlinkRunner", 2)
    config, _ = made
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"a\.jsonl:91: ") as caught:
            build.prepare_to(
                tmp_path / "out",
                config.__class__(**{**vars(config), "on_bad": "error"}),
                1,
                print,
                open_beam("", workers),
            )
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_on_beam_it_goes_on_in_processes(made, tmp_path):
    pytest.importorskip("apache_beam")
    config, prepare = made
    expected = prepare(tmp_path / "expected")
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    script = SCRIPT.format(part=PART).replace("print)", "print, open_beam('', int(sys.argv[3])))")
    (tmp_path / "run.py").write_text(f"from data_pipeline.prepare.beam import open_beam\n{script}")
    command = [sys.executable, "run.py", "config", "out", "2"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    while process.poll() is None and count_done(tmp_path) < 4:
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert prepare(tmp_path / "out", 2, print) == expected


@pytest.mark.slow
def test_a_worker_of_beam_that_dies_ends_the_run_in_a_line(made, tmp_path):
    pytest.importorskip("apache_beam")
    config, _ = made
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    script = SCRIPT.format(part=PART).replace("print)", "print, open_beam('', 2))")
    script = script.replace("build.PART_BYTES", f"{KILL}\nbuild.PART_BYTES")
    (tmp_path / "run.py").write_text(f"import os\nfrom data_pipeline.prepare.beam import open_beam\n{script}")
    environment = {**os.environ, "PYTHONPATH": f"{os.getcwd()}:{tmp_path}"}
    command = [sys.executable, "run.py", "config", "out", "1"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "error: a worker process died" in run.stderr
    assert not (tmp_path / "out").exists()


KILL = "build.read_part = lambda *arguments: __import__('os').kill(__import__('os').getpid(), 9)"
