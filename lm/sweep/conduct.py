"""In which order does a sweep go? Checks, trials, the choice, the refit, the test split, the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.schema import flat_items
from lm.config import Config, ConfigError, to_json
from lm.logger import duration, write_json
from lm.resume import RESUME_IGNORED
from lm.sweep.fold_run import metric_of
from lm.sweep.folds import Folds, Opener, of_fold
from lm.sweep.journal import Journal
from lm.sweep.program import fit
from lm.sweep.report import draw, format_table, importances, page
from lm.sweep.space import Sweep, with_keys
from lm.sweep.winner import Judge, choose, make_row, refit
from lm.sweep.work import Worker, values_of

Log = Callable[[str], None]
SIDE_BY_SIDE = "lm:side_by_side"
RESULT, PAGE = "sweep.json", "README.md"


def identity_of(config: Config, sweep: Sweep, folds: int, fingerprints: list[str]) -> dict[str, Any]:
    """All that the numbers of a sweep depend on, as JSON; not how many trials it has, nor where its data lies."""
    said = {f"sweep.{key}": value for key, value in vars(sweep).items() if key not in ("trials", "space")}
    space = {key: repr(entry) for key, entry in sweep.space.items()}
    keys = {key: value for key, value in flat_items(to_json(config)) if not RESUME_IGNORED.fullmatch(key)}
    keys = {key: value for key, value in keys.items() if key != "data.path" and not key.endswith(".path")}
    return {"config": keys, **said, "space": space, "folds": folds, "data": fingerprints}


class Conductor:
    """One process of a sweep."""

    def __init__(
        self, config: Config, sweep: Sweep, folds: int, workdir: Path, opener: Opener, judge: Judge, say: Log
    ):  # fmt: skip
        self.config, self.sweep, self.folds, self.workdir, self.judge, self.say = (
            config,
            sweep,
            folds,
            workdir,
            judge,
            say,
        )
        self.opened = Folds(opener)

    def run(self, side_by_side: str, again: str) -> None:
        """Goes on with the sweep in the workdir to its end; `again` is the command to say at the end."""
        config, sweep, say = self.config, self.sweep, self.say
        if config.train.early_stop_patience:
            say(
                "train.early_stop_patience is off in a sweep: the refit has nothing to watch (search train.steps instead)"
            )
        entry = sweep.space.get("data.batch_size")
        sizes = [int(size) for size in entry.corners()] if entry else [config.data.batch_size]
        fingerprints = self.opened.check(config, self.folds, sizes)
        self.workdir.mkdir(parents=True, exist_ok=True)
        identity = identity_of(config, sweep, self.folds, fingerprints)
        journal = Journal(self.workdir, sweep.space, sweep.direction, identity)
        self._check_count(journal)
        if (self.workdir / RESULT).is_file():
            say((self.workdir / PAGE).read_text())
            say(f"this sweep is finished; nothing to do. Next:\n{self._next()}")
            return
        together = self._side_by_side(journal, side_by_side)
        say(f"{sweep.trials} trials of {self.folds} folds, {together} side by side; the test split stays closed")
        worker = Worker(journal, sweep, config, self.folds, together, self.opened, say)
        trials = worker.run()
        with journal.locked("winner"):  # of several processes one; the others then find it done
            if not (self.workdir / RESULT).is_file():
                self._finish(journal, trials, again)
        say((self.workdir / PAGE).read_text())
        say(f"saved in {self.workdir}. Next:\n{self._next()}")

    def _check_count(self, journal: Journal) -> None:
        asked, wanted = len(journal.trials()), self.sweep.trials
        if asked > wanted:
            raise ConfigError(f"--trials={wanted}: the sweep in {self.workdir} has asked for {asked} already")
        if (self.workdir / RESULT).is_file() and asked < wanted:
            raise ConfigError(
                f"--trials={wanted}: the sweep in {self.workdir} ended with {asked}, and its test split has been opened: a choice "
                "after that would be one on the test split. Use another --workdir"
            )

    def _side_by_side(self, journal: Journal, flag: str) -> int:
        with journal.locked("ask"):
            saved = journal.read(SIDE_BY_SIDE)
            if saved is not None:
                if flag not in ("auto", str(saved)):
                    raise ConfigError(
                        f"--side_by_side={flag}: the sweep in {self.workdir} began with {saved}; leave it out"
                    )
                return saved
            if flag == "auto":
                config = of_fold(self.config, self.folds, 0)
                vocab_size = self.opened.data(config.data).tokenizer.vocab_size
                saved = fit(config, self.sweep.space, vocab_size, self.sweep.round, self.say)
            else:
                saved = int(flag)
            journal.note(SIDE_BY_SIDE, saved)
            return saved

    def _finish(self, journal: Journal, trials: list[Any], again: str) -> None:
        sweep = self.sweep
        rows = [make_row(trial, sweep, self.folds) for trial in trials]
        winner, best = choose(rows, sweep)
        config = with_keys(self.config, values_of(trials[winner["number"]], sweep))
        config = of_fold(config, self.folds, -1)
        data = self.opened.data(config.data)
        where = self.workdir / "winner"
        self.say(f"the winner is trial {winner['number']}; training it on all folds in {where}")
        test = refit(config, data, where, journal, lambda found: metric_of(found, sweep.metric), self.judge, self.say)
        seconds = [more["seconds"] for t in trials for key, more in t.attrs.items() if key.startswith("fold ")]
        summary: dict[str, Any] = {
            "workdir": str(self.workdir), "trials": rows, "winner": winner, "best": best, "folds": self.folds,
            "rule": sweep.rule, "test": test, "metric": sweep.metric, "direction": sweep.direction, "sampler": sweep.sampler,
            "seed": sweep.seed, "importance": importances(journal, trials, sweep), "seconds": sum(seconds), "command": again,
        }  # fmt: skip
        pictures = draw(self.workdir, journal, trials, rows, sweep, winner["number"])
        table = format_table(rows, sweep, self.folds, winner, best)
        (self.workdir / PAGE).write_text(page(summary, table, sweep, pictures))
        write_json(self.workdir / RESULT, summary)  # last: it says that the sweep has ended
        self.say(f"{len(seconds)} fold runs took {duration(sum(seconds))}, all processes together")

    def _next(self) -> str:
        where = self.workdir / "winner"
        use, what = ("classify", "text") if self.config.data.task == "classify" else ("generate", "prompt")
        return (
            f'  python -m lm.{use} --workdir={where} --{what}="..."    # use the winner\n'
            f"  less {where}/README.md    # its run card"
        )
