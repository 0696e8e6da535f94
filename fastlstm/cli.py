"""``fastlstm prepare | train | eval | sample | dump``: text in, trained model, cell states out."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from fastlstm.errors import InputError
from fastlstm.files import write_whole
from fastlstm.version import __version__

# Heavy modules are imported inside the commands, so that --help and a typing error answer at once.


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Every default that there is; descriptions keep their lines."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(action.default)})"
        return action.help if action.default is None else super()._get_help_string(action)


def run_command(program: str, arguments: argparse.Namespace) -> int:
    """Run ``arguments.command``; a user's mistake becomes one line on stderr and status 2, an interrupt status 130.

    Warnings of the user's concern are one line on stderr too, at once.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(
            f"{program}: warning: {' '.join(str(message).split())}", file=sys.stderr
        )
        try:
            arguments.command(arguments)
        except (InputError, OSError) as error:
            print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("fastlstm"):
                raise
            extra = "probes" if program.endswith("probes") else "data"
            print(f"{program}: error: needs {error.name}: pip install 'fastlstm[{extra}]'", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{program}: interrupted", file=sys.stderr)
            return 130
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positional arguments in one place only; key=value may stand anywhere after the recipe.
    if rest and not (hasattr(arguments, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return run_command(parser.prog, arguments)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastlstm", description=__doc__, formatter_class=Help)
    parser.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_prepare(commands)
    _add_train(commands)
    _add_eval(commands)
    _add_sample(commands)
    _add_dump(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(
    commands: _Commands, name: str, run: Callable[[argparse.Namespace], None], help: str, more: str = ""
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=f"{help}\n\n{more}".strip(), formatter_class=Help)
    parser.set_defaults(command=run)
    return parser


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_prepare(commands: _Commands) -> None:
    parser = commands.add_parser(
        "prepare",
        help="turn raw text into shards: raw bytes, an index, a manifest with hashes",
        formatter_class=Help,
    )
    kinds = parser.add_subparsers(required=True, metavar="kind")

    reviews = _command(
        kinds,
        "reviews",
        _prepare_reviews,
        "reviews as they are published",
        "UCSD/McAuley 2014 and 2018 (.json.gz: reviewText, overall), 2023 (.jsonl.gz: text, rating) and plain JSON\n"
        "lines (text with stars, rating or label); each also .zst or uncompressed. Each review is written as\n"
        "newline, space, text with newlines as spaces, newline; train, valid and test are split by product.",
    )
    reviews.add_argument("sources", nargs="+", type=Path, help="files or folders")
    reviews.add_argument("--reviews-per-shard", type=int, default=80_000, help="reviews in one shard")
    reviews.add_argument("--valid-fraction", type=float, default=0.01, help="share of products for validation")
    reviews.add_argument("--test-fraction", type=float, default=0.01, help="share of products for the test split")
    reviews.add_argument("--max-bad-lines", type=int, default=100, help="malformed lines to skip before giving up")
    reviews.add_argument("--limit", type=int, help="reviews to read; all if not given")
    reviews.add_argument("--workers", type=int, help="processes; one a core if not given")

    wikitext = _command(
        kinds,
        "wikitext",
        _prepare_wikitext,
        "WikiText files without headings and blank lines",
        "Files whose names hold train, valid or test give those splits; others are split by article.",
    )
    wikitext.add_argument("sources", nargs="+", type=Path, help="WikiText files (raw or .tokens)")
    wikitext.add_argument("--lines-per-shard", type=int, default=9_000, help="paragraphs in one shard")
    wikitext.add_argument("--valid-fraction", type=float, default=0.01, help="share of articles for validation")
    wikitext.add_argument("--test-fraction", type=float, default=0.01, help="share of articles for the test split")

    grammar = _command(
        kinds,
        "grammar",
        _prepare_grammar,
        "synthetic reviews from a small grammar, with sentiment and part-of-speech tags known exactly",
    )
    grammar.add_argument("--reviews", type=int, default=40_000, help="reviews to write (about 145 bytes each)")
    grammar.add_argument("--seed", type=int, default=0, help="the same seed writes the same reviews")
    grammar.add_argument("--reviews-per-shard", type=int, default=80_000, help="reviews in one shard")
    grammar.add_argument("--valid-fraction", type=float, default=0.05, help="share of reviews for validation")
    grammar.add_argument("--test-fraction", type=float, default=0.10, help="share of reviews for the test split")
    for kind in (reviews, wikitext, grammar):
        kind.add_argument("--out", type=Path, required=True, help="corpus folder to write")
        _quiet(kind)


def _prepare_reviews(arguments: argparse.Namespace) -> None:
    from fastlstm.corpus.prepare import prepare_reviews

    manifest = prepare_reviews(
        arguments.sources,
        arguments.out,
        reviews_per_shard=arguments.reviews_per_shard,
        valid_fraction=arguments.valid_fraction,
        test_fraction=arguments.test_fraction,
        max_bad_lines=arguments.max_bad_lines,
        limit=arguments.limit,
        workers=arguments.workers,
        progress=not arguments.quiet,
    )
    _print_corpus(arguments.out, manifest)


def _prepare_wikitext(arguments: argparse.Namespace) -> None:
    from fastlstm.corpus.prepare import prepare_wikitext

    manifest = prepare_wikitext(
        arguments.sources,
        arguments.out,
        lines_per_shard=arguments.lines_per_shard,
        valid_fraction=arguments.valid_fraction,
        test_fraction=arguments.test_fraction,
        progress=not arguments.quiet,
    )
    _print_corpus(arguments.out, manifest)


def _prepare_grammar(arguments: argparse.Namespace) -> None:
    from fastlstm.corpus.prepare import prepare_grammar

    manifest = prepare_grammar(
        arguments.out,
        reviews=arguments.reviews,
        seed=arguments.seed,
        reviews_per_shard=arguments.reviews_per_shard,
        valid_fraction=arguments.valid_fraction,
        test_fraction=arguments.test_fraction,
        progress=not arguments.quiet,
    )
    _print_corpus(arguments.out, manifest)


def _print_corpus(folder: Path, manifest: object) -> None:
    from fastlstm.corpus.shards import Manifest

    assert isinstance(manifest, Manifest)
    print(f"{folder}: {manifest.kind} corpus{' (synthetic text)' if manifest.synthetic else ''}")
    for split, entries in manifest.splits.items():
        documents, size = sum(entry.documents for entry in entries), sum(entry.bytes for entry in entries)
        print(f"  {split:5}  {len(entries)} shards, {documents:,} documents, {size:,} bytes")
    if manifest.skipped:
        print(f"  {manifest.skipped} malformed lines skipped")


def _add_train(commands: _Commands) -> None:
    from fastlstm.config import recipe_names

    parser = _command(
        commands,
        "train",
        _train,
        "train a byte-level language model on a corpus",
        "A run that was killed goes on with the same command, to the same bits; SIGTERM, SIGUSR1 and run.time_limit\n"
        "(seconds) checkpoint it and exit with status 0. Recipes that come with the package:\n"
        f"  {', '.join(recipe_names())}\n"
        "Losses are in bits per byte, rates in bytes per second. On several GPUs:\n"
        "  torchrun --nproc-per-node 8 -m fastlstm train RECIPE --data CORPUS --out RUN",
    )
    parser.add_argument("recipe", help="name of a recipe, or a .toml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example model.hidden_size=512")
    parser.add_argument("--data", type=Path, required=True, help="corpus folder (from fastlstm prepare)")
    parser.add_argument("--out", type=Path, required=True, help="run folder: checkpoints, log.jsonl, config.json")
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "required"),
        default="auto",
        help="go on from the newest checkpoint of --out: if there is one; refuse if there is; refuse if there is none",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="train nothing: print where the time of an update goes, write profile.json",
    )
    _quiet(parser)


def _train(arguments: argparse.Namespace) -> None:
    from fastlstm.config import load_config
    from fastlstm.training.config import TrainConfig

    config = load_config(TrainConfig, arguments.recipe, arguments.overrides)
    first = int(os.environ.get("RANK", "0")) == 0  # torchrun's; the others have nothing to say
    if arguments.profile:
        from fastlstm.training.profile import profile_run

        profile = profile_run(config, arguments.data, arguments.out)
        if first:
            print(profile.table())
        return
    from fastlstm.training.loop import train

    summary = train(config, arguments.data, arguments.out, progress=not arguments.quiet, resume=arguments.resume)
    if not first:
        return
    if not summary.bytes:
        print(f"{summary.checkpoint}: already trained for {summary.steps:,} steps")
        return
    valid = "" if summary.valid_loss is None else f", validation {summary.valid_loss:.3f} bits per byte"
    print(
        f"{summary.checkpoint}: {summary.steps:,} steps{valid}, "
        f"{summary.bytes / summary.seconds:,.0f} bytes/s ({summary.seconds:.0f} s)"
    )
    if summary.stopped is not None:
        print(f"stopped by {summary.stopped} before the last step: the same command goes on")


def _add_eval(commands: _Commands) -> None:
    parser = _command(
        commands,
        "eval",
        _eval,
        "loss (bits per byte) and accuracy of a model over a whole split",
        "Every byte but each shard's first is predicted once.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint or run folder")
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.add_argument("--split", choices=("train", "valid", "test"), default="test", help="which split")
    parser.add_argument("--batch-size", type=int, help="contiguous streams a shard is read as; default: as trained")
    parser.add_argument(
        "--reset", choices=("shard", "document"), help="where the state is zeroed; as trained if not given"
    )
    _quiet(parser)


def _eval(arguments: argparse.Namespace) -> None:
    from fastlstm.config import config_from_dict
    from fastlstm.corpus.shards import Corpus
    from fastlstm.training.checkpoint import load_model
    from fastlstm.training.config import TrainConfig
    from fastlstm.training.evaluate import evaluate
    from fastlstm.training.start import choose_device

    model, info = load_model(arguments.checkpoint)
    trained = config_from_dict(TrainConfig, info.config).data
    batch_size = trained.batch_size if arguments.batch_size is None else arguments.batch_size
    reset = arguments.reset or trained.reset
    if batch_size < 1:
        raise InputError(f"--batch-size: expected >= 1, got {batch_size}")
    model.to(choose_device("auto"))
    corpus = Corpus(arguments.corpus)
    entries = corpus.shards(arguments.split)
    if not entries:
        raise InputError(f"{arguments.corpus}: has no {arguments.split} split")
    results = [
        evaluate(
            model,
            corpus.open_shard(entry),
            batch_size=batch_size,
            reset=reset,
            progress=not arguments.quiet,
        )
        for entry in entries
    ]
    total = sum(result.bytes for result in results)
    loss = sum(result.loss * result.bytes for result in results) / total
    accuracy = sum(result.accuracy * result.bytes for result in results) / total
    print(
        f"{arguments.split}: {loss:.4f} bits per byte, accuracy {accuracy:.4f}, over {total:,} bytes "
        f"in {len(entries)} shards (state zeroed at each {reset}; model {info.sha256[:12]}, step {info.step:,})"
    )


def _add_sample(commands: _Commands) -> None:
    parser = _command(
        commands,
        "sample",
        _sample,
        "text that a model writes after a prime",
        "Every byte of the prime is read into the state. --out writes one JSON object a line, for the report.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint or run folder")
    parser.add_argument("--prime", default=r"\n ", help=r"text to go on from; \n is a newline")
    parser.add_argument("--length", type=int, default=300, help="bytes to draw")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the most probable byte each time")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same text")
    parser.add_argument("--count", type=int, default=1, help="samples, with seeds seed, seed + 1, ...")
    parser.add_argument("--out", type=Path, help="file to write as JSON lines instead of printing")


def _sample(arguments: argparse.Namespace) -> None:
    from fastlstm.generate import sample
    from fastlstm.training.checkpoint import load_model
    from fastlstm.training.start import choose_device

    if arguments.count < 1:
        raise InputError(f"--count: expected >= 1, got {arguments.count}")
    if arguments.out is not None and not arguments.out.absolute().parent.is_dir():
        raise InputError(f"--out: no folder {arguments.out.absolute().parent}")
    model, info = load_model(arguments.checkpoint)
    model.to(choose_device("auto"))
    prime = arguments.prime.replace("\\n", "\n").encode("utf-8", "surrogateescape")  # any bytes a shell can pass
    lines = []
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        drawn = sample(model, prime, arguments.length, temperature=arguments.temperature, seed=seed)
        text = drawn.decode(errors="replace")
        if arguments.out is None:
            print(prime.decode(errors="replace") + text)
        lines.append(
            {
                "prime": prime.decode(errors="replace"),
                "text": text,
                "temperature": arguments.temperature,
                "seed": seed,
                "model_sha256": info.sha256,
            }
        )
    if arguments.out is not None:
        write_whole(arguments.out, "".join(json.dumps(line) + "\n" for line in lines).encode())
        print(f"{arguments.out}: {len(lines)} samples of {arguments.length} bytes")


def _add_dump(commands: _Commands) -> None:
    parser = _command(
        commands,
        "dump",
        _dump,
        "cell states of a text into a Zarr store",
        "The text is a corpus folder (from fastlstm prepare or fastlstm-probes label). A dump that was killed goes on\n"
        "with the same command, to the same bytes. Several processes given the same command share the work, whenever\n"
        "they begin: under torchrun, as an array job, or by hand.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint or run folder")
    parser.add_argument("text", type=Path, help="corpus folder")
    parser.add_argument("--out", required=True, help="Zarr store to write: a folder, or a URL such as s3://bucket/name")
    parser.add_argument(
        "--rows",
        default="all",
        help="which bytes get a row: all, document (last byte of each), word (last byte of each), every:K; or the mean "
        "over each: document-mean, word-mean",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        choices=("states", "statistics"),
        default=("states",),
        help="states: every row; statistics: moments, histogram, largest values and sums by label of each cell",
    )
    parser.add_argument("--units", help="cells to store, for example 3,17,981; all if not given")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the stored states")
    parser.add_argument(
        "--state", choices=("document", "running"), default="document", help="zero per document, or running on"
    )
    parser.add_argument("--splits", nargs="+", choices=("train", "valid", "test"), help="all if not given")
    parser.add_argument("--documents", type=int, help="the first so many documents of each split; all if not given")
    parser.add_argument(
        "--batch-size", type=int, help="lanes of text read side by side; 128 on a GPU, 64 or 16 on a CPU if not given"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of weights and h: auto is fp16 on a GPU, fp32 on a CPU",
    )
    parser.add_argument(
        "--verify",
        type=int,
        nargs="?",
        const=100,
        metavar="DOCUMENTS",
        help="write nothing: check every checksum of a finished store, and read so many documents (100 if not given)\n"
        "again; status 1 if anything is wrong",
    )
    parser.add_argument("--worker", metavar="K/N", help="where this one of N processes begins; torchrun's if not given")
    parser.add_argument("--threads", type=int, help="that write files; one a core, at most 8, if not given")
    parser.add_argument("--untrained", action="store_true", help="use the weights that training started from")
    _quiet(parser)


def _dump(arguments: argparse.Namespace) -> None:
    from fastlstm.states.dump import dump
    from fastlstm.states.jobs import Worker

    summary = dump(
        arguments.checkpoint,
        arguments.text,
        arguments.out,
        rows=arguments.rows,
        units=_unit_list(arguments.units),
        dtype=arguments.dtype,
        state=arguments.state,
        splits=arguments.splits,
        documents=arguments.documents,
        untrained=arguments.untrained,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        worker=None if arguments.worker is None else Worker.parse(arguments.worker),
        threads=arguments.threads,
        keep=arguments.keep,
        verify=arguments.verify,
        progress=not arguments.quiet,
    )
    if summary.verified is not None:
        found = summary.verified
        for problem in found.problems:
            print(f"{arguments.out}: {problem}", file=sys.stderr)
        print(
            f"{arguments.out}: {found.chunks:,} chunks, {found.documents:,} documents read again, {found.rows:,} rows: "
            + ("not what its model and text say: delete it and dump again" if found.problems else "all is well")
        )
        if found.problems:
            raise SystemExit(1)
        return
    if summary.already_complete:
        print(f"{arguments.out}: already complete, {summary.rows:,} rows")
        return
    print(
        f"{arguments.out}: {summary.rows:,} rows of states from {summary.text_bytes:,} bytes of text "
        f"({summary.seconds:.1f} s)"
    )


def _unit_list(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--units: expected numbers separated by commas, got {text!r}") from error
