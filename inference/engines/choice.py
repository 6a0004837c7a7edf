"""Chooses the engine: measures each that can run here, keeps the fastest faithful one, and remembers it.

The verdict is kept per weights, head, machine and wish, so that a second start loads one engine and measures nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inference import exported, machine
from inference.engines import Engine, FloatArray, Head, amx, checks, folder, onnx_export
from inference.padding import PaddedBatch, pad
from inference.prompted import AnswerTokens
from inference.tokenizing import TextTokenizer, TokenizedInput
from mesh.errors import ModelUnusable
from mesh.telemetry import fields, get_logger

if TYPE_CHECKING:
    from inference.models import ResolvedModel

log = get_logger(__name__)

AUTO = "auto"
_VERDICT_FORMAT = 3
"""Raised when an engine is added or made faster, so that what was chosen without it is chosen again."""
_LIGHT_BONUS = 1.1
"""onnxruntime wins unless another engine is this much faster: a worker without torch starts sooner and is smaller."""
_CPU_BUDGETS = (512, 1024, 2048)
_CUDA_BUDGETS = (4096, 16384, 65536)
_ROUNDS = 4
_MEASURE_SECONDS = 3.0
"""After this long a budget gets no further round."""
_CLEARLY_FASTER = 1.03
"""A larger batch budget has to pay: everyone in the queue waits for the running batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """What an operator wants of the engine.

    Attributes:
        engine: ``auto``, or one of ENGINES to pin it.
        device: ``auto``, ``cpu`` or ``cuda:0``.
        threads: of one operator on CPU; 0 means all CPUs of the process.
        min_cosine: what ``auto`` calls faithful, over the check texts.
        models_dir: where the workers' own graphs and verdicts are kept.
        onnx_dir: where ``scripts/onnx_export.py`` put its models; None looks nowhere.
    """

    models_dir: Path
    engine: str = AUTO
    device: str = AUTO
    threads: int = 0
    min_cosine: float = 0.999
    onnx_dir: Path | None = None

    @property
    def cpu_threads(self) -> int:
        """Threads to use on CPU."""
        return self.threads or machine.cpus()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one engine did on the check texts, on this machine.

    Attributes:
        engine: one of ENGINES.
        device: ``cpu`` or ``cuda:0``.
        min_cosine, mean_cosine: to the float32 reference; of scores that are logits, see checks.score_agreement.
        texts_per_second, tokens_per_second: on texts of 5 to 25 words, in batches of ``batch_tokens``. On CPU they are
            measured with one thread and multiplied by the threads in use.
        batch_tokens: the batch budget at which it was fastest.
    """

    engine: str
    device: str
    min_cosine: float
    mean_cosine: float
    texts_per_second: float
    tokens_per_second: float
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class Job:
    """One model to be run: what, with which tokenizer, for which output.

    Attributes:
        answers: the tokens whose logits are the output, for a language model that reranks.
    """

    model: ResolvedModel
    tokenizer: TextTokenizer
    head: Head
    answers: AnswerTokens | None = None
    export: exported.Export | None = None


def _open_onnxruntime(job: Job, plan: EnginePlan, device: str) -> Engine:
    from inference.engines.onnxruntime import OnnxRuntimeEngine

    graph = job.export.graph(exported.FLOAT32) if job.export else None
    if graph is None:
        graph = onnx_export.graph_file(plan.models_dir, job.model, job.head)
        if not graph.is_file():
            onnx_export.export(job.model, job.head, graph)
    return OnnxRuntimeEngine(graph, job.head, device=device, threads=plan.cpu_threads)


def _amx(*, exact: bool) -> Callable[[Job, EnginePlan, str], Engine]:
    return lambda job, plan, _device: amx.AmxEngine(
        job.model, job.head, models_dir=plan.models_dir, threads=plan.cpu_threads, exact=exact
    )


def _open_int8(job: Job, plan: EnginePlan, device: str) -> Engine:
    from inference.engines.onnxruntime import OnnxRuntimeEngine

    if job.export is None or (graph := job.export.graph(exported.INT8)) is None:
        raise ModelUnusable(
            f"{job.model.name} has no int8 export. Make one: scripts/onnx_export.py --int8", reason="ENGINE_UNUSABLE"
        )
    return OnnxRuntimeEngine(graph, job.head, device=device, threads=plan.cpu_threads, int8_export=job.export.digest)


def _torch_in(precision: str, *, through_transformers: bool = False) -> Callable[[Job, EnginePlan, str], Engine]:
    def open_torch(job: Job, plan: EnginePlan, device: str) -> Engine:
        from inference.engines.torch import TorchEngine, TorchOptions

        threads = plan.cpu_threads
        options = TorchOptions(
            precision=precision, device=device, threads=threads, through_transformers=through_transformers
        )
        if job.answers is not None:
            from inference.engines.generative import GenerativeEngine

            return GenerativeEngine(job.model, job.answers, options)
        return TorchEngine(job.model, job.head, options)

    return open_torch


ENGINES: dict[str, Callable[[Job, EnginePlan, str], Engine]] = {
    "amx-bf16": _amx(exact=False),
    "amx-bf16x3": _amx(exact=True),
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-int8": _open_int8,
    "torch-bf16": _torch_in("bfloat16"),
    "torch-fp16": _torch_in("float16"),
    "torch": _torch_in("float32"),
}
"""Every engine by name, with the function that opens it. The order is that of the measurement."""

_open_reference = _torch_in("float32", through_transformers=True)
"""float32 through transformers' own code: what every engine is compared with."""

Report = Callable[[str], None]
"""Takes one line of progress."""


def open_engine(job: Job, plan: EnginePlan, report: Report, *, anew: bool = False) -> tuple[Engine, Verdict]:
    """The engine for ``job``: as remembered, or measured now (``anew`` measures in any case).

    Raises:
        ModelUnusable: no engine can run the model, or the pinned one is unknown or not installed.
    """
    if plan.engine not in (AUTO, *ENGINES):
        raise ModelUnusable(
            f"There is no engine {plan.engine!r}. Choose {AUTO} or one of {', '.join(ENGINES)}.",
            reason="ENGINE_UNKNOWN",
        )
    job = replace(job, export=exported.find(plan.onnx_dir, job.model, job.head, report))
    remembered = _Memory.of(job, plan)
    with folder.alone(plan.models_dir):
        verdict = None if anew else remembered.read()
        if verdict is not None and verdict.engine not in _candidates(job, plan, verdict.device):
            verdict = None  # what it needs is no longer here
        if verdict is None:
            verdict, anew = _judge(job, plan, report), True
            remembered.write(verdict)
    try:
        return _opened(job, plan, verdict, report), verdict
    except Exception as error:
        if anew:
            raise
        # It ran when it was chosen; what it needs has changed since.
        log.warning("the engine of before does not open", exc_info=error, extra=fields(engine=verdict.engine))
        report(f"{job.model.name}: {verdict.engine} does not open any more; choosing anew")
    return open_engine(job, plan, report, anew=True)


def _opened(job: Job, plan: EnginePlan, verdict: Verdict, report: Report) -> Engine:
    report(f"{job.model.name}: loading with {verdict.engine} on {verdict.device}")
    return ENGINES[verdict.engine](job, plan, verdict.device)


def _judge(job: Job, plan: EnginePlan, report: Report) -> Verdict:
    if machine.installed("torch") is None or machine.installed("transformers") is None:
        raise ModelUnusable(
            f"{job.model.name} has not been prepared for this machine, and torch and transformers, which that needs, "
            "are not installed. Install them, or run python -m inference.prepare where they are and share its models.",
            reason="ENGINE_NOT_PREPARED",
        )
    device = _device(plan)
    inputs = checks.check_inputs(job.tokenizer, job.head)
    report(f"{job.model.name}: computing the float32 reference")
    reference_engine = _open_reference(job, replace(plan, threads=1), "cpu")
    reference = _outputs(reference_engine, job, inputs)
    reference_engine.close()
    verdicts = []
    for name in _candidates(job, plan, device):
        if job.answers is not None and not name.startswith("torch"):
            continue  # the others run encoders only
        try:
            verdict = _measure(name, job, replace(plan, device=device), inputs, reference)
        except Exception as error:
            log.warning("engine left out", exc_info=error, extra=fields(model=job.model.name, engine=name))
            report(f"{job.model.name}: {name} cannot run here and is left out")
            continue
        report(
            f"{job.model.name}: {name} on {verdict.device}: {verdict.texts_per_second:.0f} texts/s, "
            f"min cosine {verdict.min_cosine:.5f}"
        )
        verdicts.append(verdict)
    return choose(verdicts, plan, name=job.model.name)


def choose(verdicts: Sequence[Verdict], plan: EnginePlan, *, name: str) -> Verdict:
    """The fastest of the faithful; a pinned engine wins even where it is not.

    Raises:
        ModelUnusable: none could run, or none is faithful.
    """
    if plan.engine != AUTO:
        for verdict in verdicts:
            if verdict.min_cosine < plan.min_cosine:
                log.warning("the pinned engine is not faithful", extra=fields(**asdict(verdict)))
            return verdict
        raise ModelUnusable(
            f"The engine {plan.engine} cannot run {name} here. The worker's log has the reason; set it to {AUTO}.",
            reason="ENGINE_UNUSABLE",
        )
    faithful = [verdict for verdict in verdicts if verdict.min_cosine >= plan.min_cosine]
    if not faithful:
        raise ModelUnusable(
            f"No engine runs {name} faithfully here. The worker's log has the figures; lower the smallest cosine "
            "allowed, or pin an engine.",
            reason="ENGINE_UNUSABLE",
        )
    return max(faithful, key=lambda each: each.texts_per_second * (_LIGHT_BONUS if each.engine == "onnxruntime" else 1))


def _candidates(job: Job, plan: EnginePlan, device: str) -> list[str]:
    if plan.engine != AUTO:
        return [plan.engine]
    names = list(ENGINES)
    if device != "cpu" or not amx.supports(job.model, plan.models_dir):
        names = [name for name in names if not name.startswith("amx")]
    if device != "cpu" or job.export is None or job.export.graph(exported.INT8) is None:
        names.remove("onnxruntime-int8")
    if device == "cpu":
        names.remove("torch-fp16")  # no CPU runs it faster than bfloat16
    if machine.installed("onnxruntime") is None and machine.installed("onnxruntime-gpu") is None:
        names = [name for name in names if not name.startswith("onnxruntime")]
    return names


def _device(plan: EnginePlan) -> str:
    if plan.device != AUTO:
        return plan.device
    if machine.may_have_cuda():
        import torch

        if torch.cuda.is_available():
            return "cuda:0"
    return "cpu"


def _measure(
    name: str, job: Job, plan: EnginePlan, inputs: Sequence[TokenizedInput], reference: list[FloatArray]
) -> Verdict:
    on_cpu = name.startswith("amx") or (name.startswith("onnxruntime") and machine.installed("onnxruntime-gpu") is None)
    device = "cpu" if on_cpu else plan.device
    engine = ENGINES[name](job, replace(plan, threads=1), device)
    threads = plan.cpu_threads if device == "cpu" else 1
    try:
        agreement = checks.score_agreement if job.head is Head.LOGITS else checks.agreement
        low, mean = agreement(reference, _outputs(engine, job, inputs))
        timed = checks.timed_inputs(job.tokenizer, job.head)
        budget, seconds = _fastest_budget(engine, job, timed, _CPU_BUDGETS if device == "cpu" else _CUDA_BUDGETS)
    finally:
        engine.close()
    return Verdict(
        engine=name,
        device=device,
        min_cosine=low,
        mean_cosine=mean,
        texts_per_second=threads * len(timed) / seconds,
        tokens_per_second=threads * sum(each.tokens for each in timed) / seconds,
        batch_tokens=budget,
    )


def _fastest_budget(
    engine: Engine, job: Job, timed: Sequence[TokenizedInput], budgets: Sequence[int]
) -> tuple[int, float]:
    """The batch budget with the best time over all timed inputs, and that time in seconds."""
    best_budget, best_seconds = budgets[0], float("inf")
    for budget in budgets:
        batches = [pad(batch, pad_token_id=job.model.card.pad_token_id) for batch in checks.batches(timed, budget)]
        engine.run(batches[0])
        seconds = _undisturbed_seconds(engine, batches)
        if seconds * _CLEARLY_FASTER < best_seconds:
            best_budget, best_seconds = budget, seconds
    return best_budget, best_seconds


def _undisturbed_seconds(engine: Engine, batches: Sequence[PaddedBatch]) -> float:
    """The sum of each batch's best time, as far as possible without what else runs on the machine.

    On CPU the engine has one thread here and its CPU time is counted: with several, one that has to share its core
    makes all others wait, and a busy machine chose the wrong engine by a factor of ten.
    """
    clock = time.thread_time if engine.traits.device == "cpu" else time.perf_counter
    best = [float("inf")] * len(batches)
    give_up = time.perf_counter() + _MEASURE_SECONDS
    for done in range(_ROUNDS):
        for position, batch in enumerate(batches):
            started = clock()
            engine.run(batch)
            best[position] = min(best[position], clock() - started)
        if done and time.perf_counter() > give_up:
            break
    return sum(best)


def _outputs(engine: Engine, job: Job, inputs: Sequence[TokenizedInput]) -> list[FloatArray]:
    found: list[FloatArray] = []
    for batch in checks.batches(inputs, _CPU_BUDGETS[0]):
        padded = pad(batch, pad_token_id=job.model.card.pad_token_id)
        found += checks.comparable(engine.run(padded), padded, job.head)
    return found


@dataclass(frozen=True, slots=True)
class _Memory:
    """One remembered verdict."""

    file: Path

    @classmethod
    def of(cls, job: Job, plan: EnginePlan) -> _Memory:
        wish = f"{plan.engine}-{plan.device}-{plan.cpu_threads}-{plan.min_cosine}".replace(":", "")
        if job.export is not None:
            wish += f"-{job.export.digest}"
        name = f"{job.model.sha256[:16]}-{job.head.value}-{wish}-{machine.fingerprint()}-v{_VERDICT_FORMAT}.json"
        return cls(plan.models_dir / "engines" / name)

    def read(self) -> Verdict | None:
        """The verdict, or None where there is none or it cannot be read: it is then measured again."""
        try:
            verdict = Verdict(**json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return verdict if verdict.engine in ENGINES else None

    def write(self, verdict: Verdict) -> None:
        """Keep the verdict, in one step."""
        folder.keep(self.file, json.dumps(asdict(verdict), indent=2))
