"""Open the FiftyOne App on a dataset and stay until Ctrl-C: `python -m benchmarks.app [NAME] [--port 5151]`."""

import argparse
import sys
import time

import fiftyone as fo

DEMO_DATASET = "pose-heatmaps-demo"


def wait_until_connected(session: fo.Session, seconds: float = 60) -> None:
    """Wait until a session and its server know each other.

    On a busy machine the server starts late. The session then tries again after 10 seconds, and takes pages that were
    opened meanwhile to its own dataset. FiftyOne has no public word for it.
    """
    deadline = time.monotonic() + seconds
    while not session._client._connected and time.monotonic() < deadline:
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", default=DEMO_DATASET, help="dataset name (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5151)
    arguments = parser.parse_args()
    if not fo.dataset_exists(arguments.dataset):
        known = ", ".join(fo.list_datasets()) or "none"
        sys.exit(f"There is no dataset '{arguments.dataset}' here (there are: {known}). `make demo` makes one.")

    # remote: no browser is opened from here, since there may be none on this machine
    session = fo.launch_app(fo.load_dataset(arguments.dataset), remote=True, port=arguments.port)
    wait_until_connected(session)
    print(f"\nThe App is at http://localhost:{arguments.port}/datasets/{arguments.dataset}")
    print(f"From another machine, first: ssh -N -L {arguments.port}:localhost:{arguments.port} USER@THIS_MACHINE")
    print("Ctrl-C ends it.", flush=True)
    session.wait(-1)


if __name__ == "__main__":
    main()
