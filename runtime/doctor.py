"""`python -m runtime doctor`: what is here, what is known not to work together, and the command that mends it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel
from rich.box import SIMPLE
from rich.table import Table

from runtime.bundle import Bundle
from runtime.cli import console
from runtime.engine_cache import intact, is_current, mend_engine, objection
from runtime.engines.tensorrt_library import load_library
from runtime.errors import Dinov3SegError, EngineError
from runtime.facts import Facts
from runtime.gpu import Gpu
from runtime.known_issues import ISSUES, Severity
from runtime.manifest import EngineEntry


class Finding(BaseModel):
    """`mend`: a command, or what to do."""

    severity: Severity
    name: str
    trouble: str
    mend: str
    reference: str = ""


class Diagnosis(BaseModel):
    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> bool:
        return any(finding.severity == "broken" for finding in self.findings)


def diagnose(facts: Facts, root: Path | None) -> Diagnosis:
    """Checks a machine, and the bundle in `root` on it."""
    bundle, damage = (None, []) if root is None else examine(root)
    found = [
        Finding(
            severity=issue.severity,
            name=issue.name,
            trouble=issue.trouble,
            mend=issue.mend,
            reference=issue.reference,
        )
        for issue in ISSUES
        if issue.met(facts, bundle.manifest if bundle else None)
    ]
    for name, reason in facts.broken.items():
        found.append(
            Finding(
                severity="broken",
                name=f"{name} does not load",
                trouble=f"{name} is installed but cannot be imported: {reason}",
                mend=f"pip install --force-reinstall {name.replace('_', '-')}",
            )
        )
    found += damage
    if bundle is not None:
        found += engines(bundle, facts)
    return Diagnosis(facts=facts, findings=tuple(found))


def examine(root: Path) -> tuple[Bundle | None, list[Finding]]:
    """The bundle if its files are those of the manifest, and what is wrong with it."""
    try:
        bundle = Bundle.open(root)
        for name in bundle.manifest.files:
            bundle.verify(name)
    except Dinov3SegError as error:
        trouble, _, remedy = str(error).rpartition("; ")
        return None, [Finding(severity="broken", name="bundle", trouble=trouble or str(error), mend=remedy)]
    if not bundle.manifest.random_weights:
        return bundle, []
    random = Finding(
        severity="warning",
        name="random weights",
        trouble=f"{root} was built with random weights: its labels mean nothing",
        mend="python export/build_engines.py --weights DIR",
    )
    return bundle, [random]


def engines(bundle: Bundle, facts: Facts) -> list[Finding]:
    """Engines that cannot be loaded here; those for other GPUs are no trouble while one fits."""
    gpu = Gpu(facts.gpu, facts.compute_capability, facts.integrated) if facts.gpu else None
    fits: set[str] = set()
    wrong: dict[str, Finding] = {}
    for engine in bundle.manifest.engines:
        name = f"engine of {engine.key.stage}"
        try:
            trouble, remedy = trouble_with(bundle, engine, gpu), mend_engine(bundle, engine, gpu)
        except EngineError as error:
            if gpu is not None:  # without one it is not missed
                name = f"{engine.key.backend} engines"
                trouble, _, remedy = str(error).partition("; ")
                wrong[name] = Finding(severity="warning", name=name, trouble=trouble, mend=remedy)
            continue
        if trouble:
            wrong[name] = Finding(severity="broken", name=name, trouble=trouble, mend=remedy)
        else:
            fits.add(name)
    return [finding for name, finding in wrong.items() if name not in fits]


def trouble_with(bundle: Bundle, engine: EngineEntry, gpu: Gpu | None) -> str:
    """Why an engine cannot be loaded here; "" if it can.

    Raises:
        EngineError: its library is not here.
    """
    library = load_library(engine.key.backend)
    wrong = objection(engine, library, engine.key.graph if is_current(bundle, engine) else "", gpu)
    if not wrong and not intact(bundle, engine):
        wrong = "was altered or cut"
    return f"{engine.path} {wrong}" if wrong else ""


def report(diagnosis: Diagnosis) -> None:
    console.print(facts_table(diagnosis.facts))
    if diagnosis.findings:
        console.print(findings_table(diagnosis))
    broken = sum(finding.severity == "broken" for finding in diagnosis.findings)
    console.print(f"{broken} broken, {len(diagnosis.findings) - broken} warnings")


def facts_table(facts: Facts) -> Table:
    table = Table("this machine", "", box=SIMPLE)
    unknown = "none found"
    board = f"{facts.gpu} (compute capability {facts.compute_capability})" if facts.gpu else unknown
    table.add_row("Python, system", f"{facts.python}, {facts.system} {facts.machine}")
    table.add_row("processor", f"kernels use {facts.simd}" if facts.simd else "no compiled kernels")
    table.add_row("GPU", board)
    table.add_row("driver, CUDA", ", ".join(filter(None, (facts.driver, facts.cuda))) or unknown)
    if facts.l4t:
        table.add_row("JetPack", f"{facts.jetpack or unknown} (L4T {facts.l4t})")
    table.add_row("power", facts.power or unknown)
    for name, number in facts.packages.items():
        extra = f" ({', '.join(facts.providers)})" if name.startswith("onnxruntime") else ""
        table.add_row(name, number + extra)
    sizes = {"memory": facts.free_memory, "GPU memory": facts.free_gpu_memory, "disk": facts.free_disk}
    free = [f"{name} {size / 2**30:.1f} GiB" for name, size in sizes.items() if size is not None]
    table.add_row("free", ", ".join(free) or unknown)
    return table


def findings_table(diagnosis: Diagnosis) -> Table:
    table = Table("", "what", "what goes wrong", "what mends it", box=SIMPLE)
    for finding in sorted(diagnosis.findings, key=lambda one: one.severity):
        style = "red" if finding.severity == "broken" else "yellow"
        trouble = f"{finding.trouble} ({finding.reference})" if finding.reference else finding.trouble
        table.add_row(finding.severity, finding.name, trouble, finding.mend, style=style)
    return table
