"""fastlstm-probes: label text, fit probes on its cell states, write the report.

A mistake in what the user gave is one line on stderr and exit status 2. Modules are imported by the command that
needs them: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastlstm.cli import _command, _quiet, run_command
from fastlstm.errors import InputError
from fastlstm.files import only_writer

NAME = "fastlstm-probes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, 2 after a user error, 130 when interrupted."""
    return run_command(NAME, build_parser().parse_args(arguments))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Find out what the cells of a byte-level LSTM know: label text, dump its cell states with "
        "`fastlstm dump`, fit probes on the stored states, look at the report.",
    )
    commands = parser.add_subparsers(metavar="{label,fit,rank,report}", required=True)
    _add_label(commands.add_parser("label", help="write labelled text that `fastlstm dump` reads"))
    _add_fit(commands.add_parser("fit", help="fit probes on a states store"))

    rank = _command(
        commands,
        "rank",
        _rank,
        "rank the cells for one part of speech in six ways, judge each by the same probe on its first k cells, and "
        "find the best subsets of up to three",
    )
    rank.add_argument("store", type=Path, help="states store of tagged text, rows all, word or every:K")
    rank.add_argument("--tag", required=True, help="the part of speech, such as NN")
    rank.add_argument(
        "--group", action=argparse.BooleanOptionalAction, default=True, help="group the tags (all verbs VB, ...)"
    )
    rank.add_argument("--C", type=float, default=0.25, help="inverse L1 strength of every probe")
    rank.add_argument("--out", type=Path, required=True, help="CSV file to write")
    rank.add_argument("--seed", type=_natural, default=42, help="of the rows that subsets are tried on")
    _quiet(rank)

    report = _command(commands, "report", _report, "write one self-contained HTML page of the results")
    report.add_argument("--results", type=Path, required=True, help="folder that `fit` wrote to")
    report.add_argument("--out", type=Path, required=True, help="HTML file to write")
    report.add_argument("--run", type=Path, help="training run folder: loss curve and configuration")
    report.add_argument(
        "--states", type=Path, help="states store with a row for every byte: text coloured by the neuron"
    )
    report.add_argument("--samples", type=Path, help="generated text, JSON lines of `fastlstm sample`")
    report.add_argument(
        "--allow-unconverged",
        action="store_true",
        help="report classifiers that are not at their optimum, and mark them",
    )
    report.add_argument("--readme-figure", type=Path, help="PNG file to write beside the report")
    return parser


def _add_label(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="{sst,reviews,lines,treebank}", required=True)
    documents = "documents to label, or 'all'"

    sst = _command(commands, "sst", _label_sst, "Stanford Sentiment Treebank, binary sentences, label 0/1")
    sst.add_argument("folder", type=Path, help="folder with {train,dev,test}_binary_sent.csv")

    reviews = _command(
        commands,
        "reviews",
        _label_reviews,
        "held-out reviews of a prepared corpus, label 0/1 by their stars (more or fewer than 3)",
        "Of reviews with the same text one is taken; the splits are by a hash of the text.",
    )
    reviews.add_argument("corpus", type=Path, help="corpus folder that `fastlstm prepare` wrote")
    reviews.add_argument("--documents", type=_count_or("all"), default="all", help=documents)
    reviews.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "valid", "test"),
        default=("valid", "test"),
        help="splits of the corpus to take reviews from",
    )
    reviews.add_argument(
        "--tags",
        choices=("none", "nltk", "gold", "auto"),
        default="none",
        help="part-of-speech tags: none, NLTK's tagger, the corpus's own, or auto: NLTK's where its data is installed",
    )
    reviews.add_argument("--seed", type=_natural, default=0, help="chooses and splits the documents")

    lines = _command(commands, "lines", _label_lines, "a text file, every line a document, tagged by NLTK")
    lines.add_argument("file", type=Path, help="UTF-8 text; blank lines and WikiText headings are left out")
    lines.add_argument("--documents", type=_count_or("all"), default="all", help=documents)
    lines.add_argument("--tags", choices=("nltk", "none"), default="nltk", help="NLTK's tagger, or no tags")

    treebank = _command(
        commands, "treebank", _label_treebank, "NLTK's sample of the Penn Treebank, gold tags (NLTK_DATA)"
    )
    treebank.add_argument("--documents", type=_count_or("all"), default="1000", help=documents)

    for command in (sst, reviews, lines, treebank):
        command.add_argument("--out", type=Path, required=True, help="corpus folder to write")
        _quiet(command)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="{sentiment,pos,carvalho2018,radford2017}", required=True)
    sentiment = _command(
        commands,
        "sentiment",
        _fit_sentiment,
        "L1 logistic regression of document labels 0/1 on the last cell states, C = 2^-8..2^0 by validation "
        "accuracy (Radford et al. 2017), one neuron, TF-IDF and baselines",
    )
    pos = _command(
        commands,
        "pos",
        _fit_pos,
        "one L1 logistic regression per part of speech on the cell states of bytes or words, then on the top 1, "
        "2 and 3 cells (Carvalho 2018), the best single cell by average precision, and baselines",
    )
    sentiment.add_argument("store", type=Path, help="states store with one row per document")
    sentiment.add_argument(
        "--skip-unlabelled", action="store_true", help="text without labels is not an error: fit nothing"
    )
    pos.add_argument("store", type=Path, help="states store of tagged text, rows all, word or every:K")
    pos.add_argument(
        "--group",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="group the tags (all verbs VB, ...; rare tags OTHER)",
    )
    pos.add_argument(
        "--C",
        type=_strength,
        default="0.25",
        help="inverse L1 strength, or 'sweep': per tag, of 2^-4..2^0 by validation accuracy",
    )
    pos.add_argument(
        "--split",
        choices=("document", "byte"),
        default="document",
        help="the text's own split by document, or the random byte split of Carvalho 2018 (81/9/10 %%), whose "
        "scores are too good: bytes of one word are in train and test",
    )
    pos.add_argument(
        "--max-rows",
        type=_count_or("all"),
        default="all",
        help="rows to train on, those of whole documents, or 'all'",
    )
    pos.add_argument("--skip-untagged", action="store_true", help="text without tags is not an error: fit nothing")
    pos.add_argument("--device", help="where the joint solver computes, such as cuda; default: the CPU")
    carvalho = _command(
        commands,
        "carvalho2018",
        _fit_carvalho,
        "the whole protocol of Carvalho 2018: every store by byte and document splits, tags grouped and as they are, "
        "C per tag, all cells and the k best; tables as CSV, results as JSON, reports",
        "Given again after a kill, it goes on at the fit that is missing.",
    )
    carvalho.add_argument("stores", type=Path, nargs="+", help="states stores of tagged text, rows all")
    carvalho.add_argument("--untrained", type=Path, nargs="+", default=(), help="their untrained ones, in this order")
    carvalho.add_argument("--device", help="where the joint solver computes, such as cuda; default: the CPU")
    radford = _command(
        commands,
        "radford2017",
        _fit_radford,
        "the protocol of Radford et al. 2017 on the Stanford Sentiment Treebank: table as CSV, result as JSON, report",
    )
    radford.add_argument("store", type=Path, help="states store of `label sst`, rows document, float32")
    for command in (pos, carvalho):
        command.add_argument(
            "--controls",
            nargs="+",
            default=("all",),
            metavar="NAME",
            help="statistics that say what the numbers are worth: 'all', 'none', or some of ngram (tag by the last "
            "bytes), random (cells drawn at random), selectivity (a random tag per word), mdl (online code length), "
            "stability (of the largest weights), positions (first and last byte of words, word means), chance (199 "
            "permutations for each tag's best cell)",
        )
    for command in (carvalho, radford):
        command.add_argument(
            "--allow-unconverged", action="store_true", help="report classifiers that are not at their optimum"
        )
    for command in (sentiment, pos, radford):
        command.add_argument(
            "--untrained", type=Path, help="store of the same rows by the untrained model, for its baseline"
        )
    for command in (sentiment, pos, carvalho, radford):
        command.add_argument("--out", type=Path, required=True, help="folder to write the result (JSON) to")
        command.add_argument(
            "--seed", type=_natural, default=42, help="of the rows drawn, and of liblinear's coordinate order"
        )
        command.add_argument(
            "--max-iter",
            type=_count,
            default=200,
            help="passes over the rows per fit, or iterations of scikit-learn's solver; fits that did not converge are "
            "marked",
        )
        command.add_argument(
            "--solver",
            choices=("joint", "liblinear", "saga", "sgd"),
            default="joint",
            help="joint: this package's, all tags at once, to a certified optimum; or scikit-learn's, tag by tag",
        )
        _quiet(command)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected 0 to 2^31 - 1, got {value}")
    return value


def _count_or(word: str) -> Callable[[str], int | None]:
    def count(text: str) -> int | None:
        return None if text == word else _count(text)

    return count


def _strength(text: str) -> float | None:
    if text == "sweep":
        return None
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0 or 'sweep', got {text}")
    return value


def _label_sst(options: argparse.Namespace) -> None:
    from fastlstm_probes.concepts.sst import label_sst
    from fastlstm_probes.printed import print_labelled

    print_labelled(label_sst(options.folder, options.out, progress=not options.quiet))


def _label_reviews(options: argparse.Namespace) -> None:
    from fastlstm_probes.concepts.reviews import label_reviews
    from fastlstm_probes.concepts.tagging import nltk_models
    from fastlstm_probes.printed import print_labelled

    tags = options.tags
    if tags == "auto":
        try:
            nltk_models()
            tags = "nltk"
        except InputError as error:
            print(f"no part-of-speech tags: {error}")
            tags = "none"
    summary = label_reviews(
        options.corpus,
        options.out,
        documents=options.documents,
        splits=tuple(options.splits),
        tags=tags,
        seed=options.seed,
        progress=not options.quiet,
    )
    print_labelled(summary)


def _label_lines(options: argparse.Namespace) -> None:
    from fastlstm_probes.concepts.tagged_text import label_lines
    from fastlstm_probes.printed import print_labelled

    summary = label_lines(
        options.file,
        options.out,
        documents=options.documents,
        tags=options.tags,
        progress=not options.quiet,
    )
    print_labelled(summary)


def _label_treebank(options: argparse.Namespace) -> None:
    from fastlstm_probes.concepts.tagged_text import label_treebank
    from fastlstm_probes.printed import print_labelled

    print_labelled(label_treebank(options.out, documents=options.documents, progress=not options.quiet))


def _fit_sentiment(options: argparse.Namespace) -> None:
    import numpy as np

    from fastlstm.states import open_states
    from fastlstm_probes.printed import print_sentiment
    from fastlstm_probes.results import SentimentResult, result_path, save_result
    from fastlstm_probes.sentiment import fit_sentiment

    store = open_states(options.store)
    if options.skip_unlabelled and np.isnan(store.document_label).all():
        print(f"{options.store}: its text has no labels: nothing to fit")
        return
    untrained = open_states(options.untrained) if options.untrained else None
    with only_writer(result_path(options.out, SentimentResult)):  # a folder that cannot be written fails before the fit
        result = fit_sentiment(
            store,
            untrained=untrained,
            seed=options.seed,
            max_iter=options.max_iter,
            solver=options.solver,
            progress=not options.quiet,
        )
        path = save_result(options.out, result)
    print_sentiment(result)
    print(f"written: {path}")


def _fit_pos(options: argparse.Namespace) -> None:
    from fastlstm.states import open_states
    from fastlstm_probes.controls import parse_controls
    from fastlstm_probes.part_of_speech import fit_part_of_speech
    from fastlstm_probes.printed import print_part_of_speech
    from fastlstm_probes.results import PartOfSpeechResult, result_path, save_result

    controls = parse_controls(" ".join(options.controls))
    store = open_states(options.store)
    if options.skip_untagged and store.word_tag is None:
        print(f"{options.store}: its text has no tagged words: nothing to fit")
        return
    untrained = open_states(options.untrained) if options.untrained else None
    with only_writer(result_path(options.out, PartOfSpeechResult)):
        result = fit_part_of_speech(
            store,
            untrained=untrained,
            group=options.group,
            C=options.C,
            split=options.split,
            max_rows=options.max_rows,
            seed=options.seed,
            max_iter=options.max_iter,
            solver=options.solver,
            device=options.device,
            controls=controls,
            progress=not options.quiet,
        )
        path = save_result(options.out, result)
    print_part_of_speech(result)
    print(f"written: {path}")


def _fit_carvalho(options: argparse.Namespace) -> None:
    from fastlstm.states import open_states
    from fastlstm_probes.controls import parse_controls
    from fastlstm_probes.recipes import Settings, carvalho2018

    settings = Settings(
        seed=options.seed,
        max_iter=options.max_iter,
        solver=options.solver,
        device=options.device,
        allow_unconverged=options.allow_unconverged,
        progress=not options.quiet,
        controls=parse_controls(" ".join(options.controls)),
    )
    with only_writer(options.out / "overall.csv"):
        files = carvalho2018(
            [open_states(path) for path in options.stores],
            options.out,
            untrained=[open_states(path) for path in options.untrained],
            settings=settings,
        )
    for file in files:
        print(f"written: {file}")


def _fit_radford(options: argparse.Namespace) -> None:
    from fastlstm.states import open_states
    from fastlstm_probes.recipes import Settings, radford2017

    settings = Settings(
        options.seed, options.max_iter, options.solver, None, options.allow_unconverged, not options.quiet
    )
    with only_writer(options.out / "sentiment.csv"):
        files = radford2017(
            open_states(options.store),
            options.out,
            untrained=open_states(options.untrained) if options.untrained else None,
            settings=settings,
        )
    for file in files:
        print(f"written: {file}")


def _rank(options: argparse.Namespace) -> None:
    from fastlstm.states import open_states
    from fastlstm_probes.printed import print_rankings
    from fastlstm_probes.rank import rank_tag, write_rankings

    with only_writer(options.out):
        table = rank_tag(
            open_states(options.store),
            options.tag,
            group=options.group,
            C=options.C,
            seed=options.seed,
            progress=not options.quiet,
        )
        write_rankings(options.out, table)
    print_rankings(table)
    print(f"written: {options.out}")


def _report(options: argparse.Namespace) -> None:
    from fastlstm.states import open_states
    from fastlstm_probes.report import write_report

    no_figure = write_report(
        options.out,
        run=options.run,
        results=options.results,
        states=open_states(options.states) if options.states else None,
        samples=options.samples,
        readme_figure=options.readme_figure,
        allow_unconverged=options.allow_unconverged,
    )
    if no_figure:
        print(f"not written: {options.readme_figure}: {no_figure}")
    print(f"written: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
