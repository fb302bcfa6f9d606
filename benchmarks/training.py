"""Training a U-Net as train.py does it, beside eager float32 in PyTorch's default memory layout.

    python benchmarks/training.py [--rounds 3] [--epochs 2] [--threads 0] [--json PATH]

Both ways are whole runs of ``train.py``; the rates are those that the runs logged. They take turns, so that a busy
machine slows both. Beside them the scores, since a rate that costs accuracy is none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAYS = {
    "as it comes": ("trainer.precision=auto", "trainer.channels_last=true"),
    "eager float32": ("trainer.precision=32-true", "trainer.channels_last=false"),
}
NETWORK = ("model=unet", "model.widths=[16,64,128,256]", "model.bottleneck=512", "level=fine", "crop.size=64",
           "crop.number=64", "features=base", "conservation=additive", "evaluation.ridge=null",
           "evaluation.details=false", "evaluation.figures=false", "trainer.batch_size=32", "trainer.patience=null",
           "trainer.progress=false", "tracking.log_model=false", "tracking.system_metrics=false")  # fmt: skip
RATE = "perf/samples_per_s"


def trained(folder: Path, *words: str) -> dict[str, float]:
    """Metrics of one run of ``train.py``, by name."""
    database = f"sqlite:///{folder.parent / 'mlflow.db'}"
    places = [f"paths.output={folder}", f"paths.data={folder.parent / 'data'}", f"hydra.run.dir={folder}"]
    places += [f"tracking.uri={database}", f"tracking.artifacts={folder.parent / 'artifacts'}"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "train.py"), *NETWORK, *words, *places]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database)
    return dict(client.get_run((folder / "run_id").read_text().strip()).data.metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    more = (f"trainer.epochs={options.epochs}", f"trainer.threads={options.threads}")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            for way, words in WAYS.items():
                found[way].append(trained(Path(scratch) / f"{number}_{way.replace(' ', '_')}", *words, *more))
    rows = {
        way: {"crops_per_s": statistics.median(run[RATE] for run in runs), "rmse": runs[0]["test/rmse"]}
        for way, runs in found.items()
    }
    print(f"{'':16}{'training':>18}{'RMSE':>10}")
    for way, row in rows.items():
        print(f"{way:16}{row['crops_per_s']:11.1f} crops/s{row['rmse']:10.4f}")
    ratio = statistics.median(ours[RATE] / plain[RATE] for ours, plain in zip(*found.values(), strict=True))
    print(f"{'ratio':16}{ratio:11.2f}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
