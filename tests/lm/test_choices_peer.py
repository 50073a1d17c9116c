"""Are the scores of answers those of lm-evaluation-harness, on a published model that PyTorch runs?"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.questions import encode_questions, read_questions
from data_pipeline.tokenizer import load_tokenizer
from lm.build import load_run
from lm.choices import normalise
from lm.hf.__main__ import main
from lm.likelihood import score

ROWS = [
    ("Once upon a time there was a", ["little girl", "dog.", "big  tree", "zebra crossing"]),
    ("Lily said: ", ["Hello!", "好的", "I am happy. They played all day."]),
    ("Q: Who ran?\nA:", ["the cat", "The Cat", "1234"]),
    ("Tom and Sam went to the park.\n", ["They", " Sam", "\nThey played"]),
    ("中文 mix, naïve", ["éclair", "ball"]),
    ("", ["Once upon", "The end"]),
]


@pytest.mark.slow
@pytest.mark.parametrize("add_bos", [True, False])
def test_scores_and_decisions_are_those_of_the_harness(tmp_path, add_bos):
    pytest.importorskip("torch")
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder = os.environ.get("LM_ASSETS")
    if not folder or not Path(folder, "stories260k").is_dir():
        pytest.skip("LM_ASSETS names no folder with stories260k")
    folder = str(Path(folder, "stories260k"))
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": prompt, "choices": choices, "answer": 0} for prompt, choices in ROWS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["import", folder, str(tmp_path / "run")])
    loaded, tokenizer = load_run(str(tmp_path / "run"), "best", print), load_tokenizer(tmp_path / "run" / "tokenizer")
    config = DataConfig(path=str(file))
    asked = read_questions(config, None, tokenizer, str(file), "", False, "", print)
    asked, _ = encode_questions(asked, tokenizer, add_bos, False, 256, print)
    pairs = [pair for row in asked.rows for pair in row.pairs]
    found = score(loaded.model, loaded.params, pairs, loaded.mesh)

    def joined(prompt, choice):
        return ("" if not prompt or prompt[-1].isspace() or choice[0].isspace() else " ") + choice

    theirs = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4, add_bos_token=add_bos)
    requests = [
        Instance("loglikelihood", {}, (prompt, joined(prompt, choice)), 0)
        for prompt, choices in ROWS
        for choice in choices
    ]
    expected = np.array([value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    at = 0
    for row, (_, choices) in zip(asked.rows, ROWS):
        sums, lengths = expected[at : (at := at + len(choices))], np.array([len(c.encode()) for c in choices])
        ours = normalise("bytes", found[at - len(choices) : at], lengths, lengths, lengths)
        assert ours.argmax() == (sums / lengths).argmax()  # its acc_bytes
        assert len(row.pairs) == len(choices)
