"""`tracenas study`: which proxies order architectures as their recovered quality does (TraceNAS §4.2, Table 1)."""

from tracenas.commands.study.design import make_design
from tracenas.commands.study.results import StudyOutcome
from tracenas.config import StudyConfig
from tracenas.config.local_paths import with_absolute_paths
from tracenas.data.sources import probe
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.workers import with_workers
from tracenas.reporting.progress import START, phase

__all__ = ["StudyOutcome", "study"]


def study(config: StudyConfig) -> StudyOutcome:
    """Run or resume a study into the directory `config.out`.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    config = with_workers(with_absolute_paths(config))
    source = open_source(config.model, decoder_only="study")
    if not config.resume:
        probe(config.text_field, config.data, config.text)
    _ = config.trackers  # those that are unknown or not installed are refused
    design = make_design(config, source)
    with phase(START):
        from tracenas.commands.study.running import run  # torch and transformers take seconds to import

    return run(config, source, design)
