"""Both hands in 3D in the browser: drop a photo or a video, look at the hands, download the files.

    python web.py                                  # then open http://127.0.0.1:7861; Ctrl-C ends it
    python web.py --gpu cpu --checkpoint FILE
    python web.py --host 0.0.0.0 --token SECRET    # for others, who open http://HOST:7861/?token=SECRET

Nothing is fetched from or sent to another host. Photos and videos are deleted as soon as they are read; the last 50
results stay in a temporary folder until the program ends. The files to download are those that demo.py writes.

Videos may have at most 200 MB, and 9 megapixels a frame. The whole frame is one person, as with demo.py --people one.
The page shows frames as they come; Cancel, or closing the page, ends the work, and nothing of it is kept. Until then
photos wait. Videos need the package av.
"""

import argparse
import ipaddress
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import UserError, error_context, run_main
from common.options import CHECKPOINT, GPU_HELP, MANO_FOLDER, MANO_HELP, RENDERERS, SHA256_HELP, Parser, sha256, shown

PORT = 7861
MAX_PHOTO_PIXELS = 50_000_000  # larger photos are refused before they are decoded


def main() -> None:
    args = parse_args()
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PHOTO_PIXELS)  # OpenCV reads it when it is loaded
    with error_context(f"cannot listen on {args.host}:{args.port}", OverflowError, advice="choose another --port"):
        listener = socket.create_server((args.host, args.port))
    try:
        from demo.server import serve  # imports torch, which takes seconds: --help and mistakes are answered before
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError(f"the page needs the package {error.name}: pip install starlette uvicorn") from None

    serve(args, listener, MAX_PHOTO_PIXELS)


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    files, processing, results = parser.standard_groups()
    server = parser.add_argument_group("server")
    files.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help=f"the network (default: {shown(CHECKPOINT)})"
    )
    files.add_argument("--sha256", type=sha256, help=SHA256_HELP)
    files.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    processing.add_argument("--gpu", help=GPU_HELP)
    results.add_argument("--renderer", choices=RENDERERS, default="auto", help="what draws the meshes (default: auto)")
    server.add_argument(
        "--port", type=int, default=PORT, help="port to listen on; 0: any that is free (default: %(default)s)"
    )
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer alone)")
    server.add_argument("--token", help="what others must know to use it; required with another --host")
    args = parser.parse_args()
    if not is_loopback(args.host):
        if not args.token:
            parser.error(f"--host {args.host}: others could use this program; it needs --token, too")
        print(f"warning: everyone who reaches {args.host} and knows the token can use this program; the connection is "
              "not encrypted", file=sys.stderr)  # fmt: skip
    return args


def is_loopback(host: str) -> bool:
    """Whether only programs on this computer can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    run_main(main)
