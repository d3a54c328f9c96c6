"""Our side of a comparison: the training loop of a config, a block at a time (see turns).

python -m tools.bench.ours --config=FILE --config.KEY=VALUE...

On an accelerator it also says what a device took of its memory at most, and what the compiler said.
"""

import sys

from research.config import cli
from research.config.loading import validated
from tools.bench.turns import serve_blocks


def main(argv: list[str]) -> int:
    _, config, _ = cli.parse_config(cli.config_parser(__doc__), argv)
    config = validated(config)

    from research.models import accounting
    from research.parallel import compile_cache, device_mesh
    from research.planning import benchmark
    from research.training.make_run import make_run
    from research.training.trainer import run_mesh

    device_mesh.use_all_cpu_cores()
    compile_cache.enable_compile_cache()
    run = make_run(config)
    loop = benchmark.TimedLoop(run, run_mesh(run))
    loop.settle()
    facts = {"params": run.facts["params"], "flops": accounting.step_flops(run.model, run.batch)}
    if loop.trainer.mesh.devices.flat[0].platform != "cpu":
        facts |= {"peak_bytes": loop.bytes(), "compiled_bytes": loop.compiled_bytes()}
    serve_blocks(loop.block, device=sys.platform, **facts)
    return 0


if __name__ == "__main__":
    cli.run(main)
