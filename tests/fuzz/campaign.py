"""The loop: mutate, decode, count; keep what reaches new code; report what must not happen.

A run is decided by target, seed and build alone. Compiled in the fuzzing build.
"""

import struct
import sys
import time
import traceback

from fuzz import targets
from fuzz.mutation import Chance, Mutator

FINDINGS_MAX = 20
CORPUS_MAX = 4000
NEWEST = 64
BURST = 400
REASONS_MAX = 200  # counted one by one
BOX = struct.Struct("<QQI")


class Finding:
    """An input that did what no input may do.

    Attributes:
        target, seed, iteration: where it was found: a run with this seed comes by it again.
        chance: the number that decided how the input was fed (fragments, options).
        data, problem: the input, and what happened.
    """

    def __init__(self, target, seed, iteration, chance, data, problem):
        self.target = target
        self.seed = seed
        self.iteration = iteration
        self.chance = chance
        self.data = bytes(data)
        self.problem = problem

    @property
    def file_name(self):
        """Name of the file that keeps the input."""
        return f"{self.target}-{self.seed}-{self.iteration}-{self.chance}.bin"

    def as_dict(self):
        """What the report says about it."""
        return {
            "target": self.target, "seed": self.seed, "iteration": self.iteration, "chance": self.chance,
            "bytes": len(self.data), "problem": self.problem, "file": self.file_name,
        }  # fmt: skip


class Campaign:
    """A run of one target.

    Args:
        target: a `targets.Target`.
        seed: decides everything.
        guided: keep inputs that take new edges of the decoders; needs the instrumented build.
        box: None, or a writable buffer that always holds the current input, for when the process dies of it.
    """

    def __init__(self, target, seed, guided=False, box=None):
        self.target = target
        self.seed = seed
        self.guided = guided and targets.exact is not None
        self.box = box
        self.chance = Chance(seed)
        self.corpus = [bytes(data) for data in target.seeds()]
        self.seed_count = len(self.corpus)
        self.mutator = Mutator(self.chance, target.format.layout, self.corpus, target.format.bytes_max)
        self.executions = 0
        self.decoded = 0
        self.refused = {}
        self.findings = []
        self.seconds = 0.0
        self._known_problems = set()
        self._unraisable = []
        self._last = None
        self._burst = target.burst
        self._edges_before = targets.exact.edges() if targets.exact is not None else 0

    def run(self, executions):
        """Go on for so many executions, or until there are FINDINGS_MAX different findings."""
        began = time.process_time()
        hook, sys.unraisablehook = sys.unraisablehook, self._unraisable.append
        try:
            end = self.executions + executions
            while self.executions < end and len(self.findings) < FINDINGS_MAX:
                self.step()
                if self._burst is not None:
                    self._run_burst(min(BURST, end - self.executions))
        finally:
            sys.unraisablehook = hook
            self.seconds += time.process_time() - began
        return self

    def step(self):
        """One execution."""
        iteration = self.executions
        data = self._next_input(iteration)
        feeding = self.chance.word()
        if self.box is not None:
            size = len(data)
            BOX.pack_into(self.box, 0, iteration, feeding, size)
            self.box[20 : 20 + size] = data
        before = targets.exact.edges() if self.guided else 0
        self.executions += 1
        problem = self._execute(data, feeding)
        if problem is not None:
            self._note(problem, iteration, feeding, data)
        if self.guided and targets.exact.edges() != before:
            self._keep(data)

    def _note(self, problem, iteration, feeding, data):
        # The same exception at the same place is one finding, whatever its words.
        name = problem.split(": ")[0]
        if name not in self._known_problems:
            self._known_problems.add(name)
            self.findings.append(Finding(self.target.name, self.seed, iteration, feeding, data, problem))

    def _keep(self, data):
        if self.guided and len(self.corpus) < CORPUS_MAX:
            self.corpus.append(bytes(data))

    def _run_burst(self, count):
        """Variants of the last input if it was decoded, else of a kept one, without Python between them."""
        burst = self._burst
        base = self._last or self.corpus[self.chance.below(len(self.corpus))]
        self.executions += burst.run(targets.exact.ExactBytes(base), self.chance, max(count, 0), self.box)
        if burst.failed is not None:
            self._note("a property of the verdict is broken", self.executions - 1, 0, burst.failed)
        if burst.reached is not None:
            self._keep(burst.reached)

    def _next_input(self, iteration):
        chance = self.chance
        count = len(self.corpus)
        if iteration < self.seed_count:
            return bytearray(self.corpus[iteration])
        place = chance.below(count)
        if self.guided and chance.below(4) == 0:
            # What reached something new last is most likely to be near something else that is new.
            place = count - 1 - chance.below(min(count, NEWEST))
        data = bytearray(self.corpus[place])
        self.mutator.mutate(data)
        if chance.below(2):
            self.target.format.fit(data)
        if chance.below(8):
            self.target.format.seal(data)
        return data

    def _execute(self, data, feeding):
        """Give one input to the target; returns the problem if it is a finding."""
        target = self.target
        problem = None
        self._last = None
        try:
            reason = target.judge(data, Chance(feeding))
            if reason is not None:
                reason = targets.reason_of(reason)
        except target.refusals as error:
            try:
                reason = targets.reason_of(error)
            except AssertionError as broken:
                return f"AssertionError: {broken}"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} in {place.name}:{place.lineno}: {targets.short(str(error))}"
        if self._unraisable:
            problem = f"unraisable {self._unraisable[0].exc_value!r}"
            self._unraisable.clear()
        self._last = data if reason is None else None
        if reason is None:
            self.decoded += 1
        else:
            if reason not in self.refused and len(self.refused) >= REASONS_MAX:
                reason = "other"
            self.refused[reason] = self.refused.get(reason, 0) + 1
        return problem

    def report(self):
        """Totals as a dict for JSON."""
        decoded, refused = self.decoded, dict(self.refused)
        if self._burst is not None:
            for code, count in enumerate(self._burst.tallies, -5):
                reason = self.target.codes.get(code)
                if reason is not None:
                    refused[reason] = refused.get(reason, 0) + count
                else:
                    decoded += count
        early = sum(count for reason, count in refused.items() if reason.startswith(tuple(self.target.early)))
        return {
            "target": self.target.name,
            "seed": self.seed,
            "guided": self.guided,
            "executions": self.executions,
            "cpu_seconds": round(self.seconds, 3),
            "executions_per_cpu_second": round(self.executions / max(self.seconds, 1e-9)),
            "decoded": decoded,
            "behind_checksum": self.executions - early,
            "corpus": len(self.corpus),
            "edges": targets.exact.edges() - self._edges_before if targets.exact is not None else 0,
            "refused": dict(sorted(refused.items(), key=lambda item: -item[1])),
            "findings": [finding.as_dict() for finding in self.findings],
        }


def replay(target, data, feeding):
    """Give one kept input to its target again; returns the problem, or None."""
    return Campaign(target, 0)._execute(bytearray(data), feeding)
