"""Measure Easel side by side with diffusers: `python benchmarks/run.py [--quick] [names]`.

A table goes to stdout and, after each row so that a timeout loses nothing, JSON to
benchmarks/results/. A row whose two sides do not compute the same thing gets no ratio.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file, not as a module
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks import (  # noqa: E402
    rows_gpu,
    rows_guidance,
    rows_image,
    rows_loading,
    rows_network,
    rows_program,
    rows_prompts,
)
from benchmarks.measure import NotEquivalent, Row, Waits, machine  # noqa: E402
from benchmarks.sizes import Options  # noqa: E402

ROWS: dict[str, Callable[[Options], Row]] = {
    "unet_overhead": rows_network.unet_overhead,
    "unet_bf16": rows_network.unet_bf16,
    "unet_bf16_small": rows_network.unet_bf16_small,
    "unet_fp32": rows_network.unet_fp32,
    "unet_fp32_small": rows_network.unet_fp32_small,
    "unet_guided": rows_network.unet_guided,
    "unet_gpu": rows_gpu.unet_gpu,
    "unet_gpu_four": rows_gpu.unet_gpu_four,
    "unet_gpu_compiled": rows_gpu.unet_gpu_compiled,
    "unet_gpu_four_compiled": rows_gpu.unet_gpu_four_compiled,
    "bf16_units": rows_network.bf16_units,
    "vae_decode_bf16": rows_network.vae_decode_bf16,
    "attention_learnt": rows_network.attention_learnt,
    "sampler_loop": rows_network.sampler_loop,
    "guidance_cost": rows_guidance.guidance_cost,
    "image_prompts": rows_prompts.image_prompts,
    "image_prompt_task": rows_prompts.image_prompt_task,
    "pyracanny": rows_prompts.pyracanny,
    "cpds": rows_prompts.cpds,
    "text_to_image": rows_image.text_to_image,
    "checkpoint_load": rows_loading.checkpoint_load,
    "checkpoint_cast": rows_loading.checkpoint_cast,
    "lora_merge": rows_loading.lora_merge,
    "load_memory": rows_image.load_memory,
    "around_sampler": rows_image.around_sampler,
    "previews": rows_image.previews,
    "inspector": rows_program.inspector,
    "forecast_error": rows_image.forecast_error,
    "import_webui": rows_program.import_webui,
    "first_page": rows_program.first_page,
    "first_picture": rows_program.first_picture,
}


def _line(row: Row) -> str:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    interval = "" if row.low is None else f"{row.low:.2f}..{row.high:.2f}"
    cells = (
        f"{row.name:<16}",
        f"{number(row.ours, '.4g'):>9}",
        f"{number(row.theirs, '.4g'):>9}",
        f"{row.unit:<3}",
        f"{number(row.ratio, '.2f'):>6}",
        f"{interval:<11}",
        f"{row.target:<9}",
        f"{number(row.error, '.1e'):<8}",
    )
    return " ".join(cells) + f" {row.setup}" + (f" ({row.note})" if row.note else "")


def _measure(name: str, options: Options) -> tuple[Row | None, str, str]:
    """(the row, '', '') or (None, "waiting" or "failed", why)."""
    try:
        return ROWS[name](options), "", ""
    except Waits as error:
        return None, "waiting", str(error)
    except NotEquivalent as error:
        return None, "failed", f"not equivalent, so no ratio: {error}"
    except Exception:  # noqa: BLE001 - one broken row must not lose the others
        return None, "failed", traceback.format_exc(limit=6)


def main(argv: list[str] | None = None) -> int:
    """0 if every row was measured or waits for other hardware, 1 otherwise."""
    parser = argparse.ArgumentParser(description="Measure speed against diffusers.")
    parser.add_argument("names", nargs="*", help=f"rows to measure; all of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="tiny models: only shows that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of a short row")
    parser.add_argument("--threads", type=int, help="PyTorch's threads, both sides")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join(ROWS))
        return 0
    unknown = [name for name in arguments.names if name not in ROWS]
    if unknown:
        parser.error(f"no row is named {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    options = Options(quick=arguments.quick, rounds=2 if arguments.quick else arguments.rounds)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
    report = {"machine": machine(), "quick": options.quick, "rows": []}
    report |= {"waiting": {}, "failed": {}}  # why a row is not there
    print(json.dumps(report["machine"]))
    print("row                   ours    theirs      ratio  95 %       target    error    setup")
    for name in arguments.names or ROWS:
        row, kind, problem = _measure(name, options)
        if row is None:
            report[kind][name] = problem
            print(f"{name:<16} -- {problem}")
        else:
            report["rows"].append(row.as_json())
            print(_line(row), flush=True)
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"written to {path.relative_to(ROOT)}")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
