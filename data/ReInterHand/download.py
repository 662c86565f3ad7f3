"""Download and unpack Re:InterHand (two hands, relit, ten captures, hundreds of GB).

    python download.py                                      # what there is to choose from
    python download.py --captures test                      # the test split as the default settings need it
    python download.py --captures RNS217,NKC880 --parts orig_fits,mano_fits
    python download.py --captures all --dry-run             # the plan with its sizes

Into data/ReInterHand/data. Interrupted? Run it again: it continues. Every file is checked against the publisher's
list of checksums.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from common.errors import UserError, run_main  # noqa: E402
from common.options import Parser  # noqa: E402
from data import layouts  # noqa: E402


def main() -> None:
    args = parse_args()
    if args.captures is None:
        print(overview())
        raise UserError("nothing was chosen; name captures with --captures (all, train, test, or pieces of names)")

    from data import download

    groups = {"all": layouts.CAPTURES, "train": layouts.TRAIN_CAPTURES, "test": layouts.TEST_CAPTURES}
    captures = download.choose(args.captures, groups, "--captures")
    parts = download.choose(
        args.parts, {"all": layouts.CAPTURE_ARCHIVES, "default": layouts.DEFAULT_ARCHIVES}, "--parts"
    )
    base = download.check_base(args.base)
    download.refuse_toy_data(args.output)
    download.print_terms("ReInterHand")
    md5s: dict[str, str] = {}
    for capture in captures:
        listed = download.read_checksums(download.fetch_text(f"{base}/{capture}/{layouts.CHECKSUMS}"))
        md5s |= {f"{capture}/{path}": md5 for path, md5 in listed.items()}
    archives = [
        with_listed_parts(layouts.capture_archive(capture, name), md5s) for capture in captures for name in parts
    ]
    files = [f"{capture}/{name}" for capture in captures for name in layouts.CAPTURE_FILES]
    unlisted = [path for path in (*files, *(part for a in archives for part in a.parts)) if path not in md5s]
    if unlisted:
        print(f"note: {len(unlisted)} files have no checksum in the publisher's lists, e.g. {unlisted[0]}")
    remote = [download.RemoteFile(path, md5s.get(path)) for path in files]
    download.run_job(download.Job(base, args.output, remote, archives, md5s, args.keep), args.dry_run)


def with_listed_parts(archive: layouts.Archive, md5s: Mapping[str, str]) -> layouts.Archive:
    """The archive with the parts which the publisher lists, should they differ from those we know."""
    stem = archive.parts[0].removesuffix("aa")
    listed = tuple(sorted(path for path in md5s if re.fullmatch(re.escape(stem) + "[a-z]{2}", path)))
    if not listed or listed == archive.parts:
        return archive
    print(f"note: {archive.target} has {len(listed)} parts by the publisher's list, not {len(archive.parts)}")
    return replace(archive, parts=listed)


def overview() -> str:
    """The captures and how many parts each archive of them has."""
    lines = ["capture    split  parts of " + "  ".join(layouts.CAPTURE_ARCHIVES)]
    for capture in layouts.CAPTURES:
        split = "test" if layouts.is_test_capture(capture) else "train"
        counts = (
            f"{len(layouts.capture_archive(capture, name).parts):{len(name)}}" for name in layouts.CAPTURE_ARCHIVES
        )
        lines.append(f"{capture.split('--')[3]:10} {split:5}  {'':8} " + "  ".join(counts))
    lines.append(f"--parts default: {', '.join(layouts.DEFAULT_ARCHIVES)} (what training and testing read by default)")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument("--captures", help="comma-separated: all, train, test, or pieces of names such as RNS217")
    parser.add_argument(
        "--parts",
        default="default",
        help=f"comma-separated: all, default, {', '.join(layouts.CAPTURE_ARCHIVES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--base", default=layouts.REINTERHAND_BASE, help="address of the captures (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=HERE / "data", help="folder (default: data/ReInterHand/data)")
    parser.add_argument("--keep", action="store_true", help="keep the archives after unpacking")
    parser.add_argument("--dry_run", action="store_true", help="show what would be downloaded, and how large it is")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
