"""Every interleaving of the protocols of ``csrc/barrier.h``, on a memory whose stores arrive late.

A thread is a list of operations, each of which is one access to shared memory.  Stores go to a buffer of their thread
and reach memory later: relaxed ones in any order between variables, a release behind all that stand before it.  A
sequentially consistent store has reached memory before the thread's next operation, and so has everything before a
read-modify-write or a call of the kernel.  Loads see the thread's own buffer, then memory.  :func:`explore` walks
through all states, and finds meetings that let a thread see too little, and threads that sleep for ever.

Work comes in shares, of which a thread takes its own, then those that nobody has taken: in rounds that ``shares`` says;
in the others each does its own.

What ``FAULTS`` names are orders that look as good: each has to be found out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

FAULTS = (
    "the round is a release only",
    "the round is relaxed",
    "sleepers announce themselves after their last look",
    "the kernel does not compare",
    "the size is written behind the round",
    "the counter is set back behind the round",
    "arrivals are relaxed",
    "a share is looked at, then taken",
    "shares of rounds that are over are taken",
    "who is behind is alone",
)


class Store(NamedTuple):
    name: str
    value: int
    release: bool


@dataclass(frozen=True)
class Thread:
    number: int
    size: int  # of the team
    at: str = "work"
    meeting: int = 0
    share: int = 0  # that it does
    seen: int = 0  # the round before the meeting
    chosen: int = 0  # the size for the next, by who came last
    buffer: tuple[Store, ...] = ()


SIZES = 8  # more than any

AnyThread = TypeVar("AnyThread", bound=Thread)
Memory = tuple[tuple[str, int], ...]
State = tuple[Memory, tuple[Thread, ...]]


class Broken(AssertionError):
    """A state that must not be."""


def load(memory: dict[str, int], thread: Thread, name: str) -> int:
    for store in reversed(thread.buffer):
        if store.name == name:
            return store.value
    return memory.get(name, 0)


def flushes(thread: AnyThread) -> Iterator[tuple[Store, AnyThread]]:
    """The stores that may reach memory next."""
    for i, store in enumerate(thread.buffer):
        before = thread.buffer[:i]
        blocked = before if store.release else [other for other in before if other.name == store.name]
        if not blocked:
            yield store, replace(thread, buffer=before + thread.buffer[i + 1 :])


def groups_of(size: int, most: int) -> int:
    """As ``Barrier::arrives_last``, with groups of two."""
    return max(1, min(most, (size + 1) // 2))


def group_of(t: Thread, most: int) -> int:
    """Where its share arrives: neighbours at one counter."""
    return t.share * groups_of(t.size, most) // t.size


def size_word(of: int, size: int) -> int:
    """A size, and the round it is of."""
    return of * SIZES + size


def take(memory: dict[str, int], t: Thread, share: int, fault: str) -> tuple[dict, Thread] | None:
    """As ``Barrier::takes``, which waits for no store of its own before; none where somebody has."""
    rounds = memory.get(f"rounds {share}", 0)
    if rounds > t.meeting + (fault == "shares of rounds that are over are taken"):
        return None
    if fault == "a share is looked at, then taken":
        return memory, replace(t, at="take blindly", share=share)
    return memory | {f"rounds {share}": t.meeting + 1}, replace(t, at="work", share=share)


def step(
    memory: dict[str, int], t: Thread, meetings: int, groups: int, fault: str, shares: tuple[bool, ...]
) -> Iterator[tuple[dict, Thread]]:
    """What a thread may do next: memory and thread afterwards.  Sleep is in memory, as ``asleep i``."""

    def buffered(at: str, name: str, value: int, release: bool = False, **others: int) -> tuple[dict, Thread]:
        return memory, replace(t, at=at, buffer=(*t.buffer, Store(name, value, release)), **others)

    drained = not t.buffer
    together = shares[t.meeting % len(shares)]
    if t.at == "alone":
        if load(memory, t, "data 0") != t.meeting:
            raise Broken(f"thread {t.number} does round {t.meeting} again, alone")
        over = t.meeting + 1 == meetings
        yield buffered("over" if over else "alone", "data 0", t.meeting + 1, meeting=t.meeting + 1)
    elif t.at == "begin":
        own = replace(t, share=t.number, seen=t.meeting)
        if not together:
            yield memory, replace(own, at="work")
        else:
            yield take(memory, own, t.number, fault) or (memory, replace(own, at="spin"))
    elif t.at == "take blindly":
        yield memory | {f"rounds {t.share}": t.meeting + 1}, replace(t, at="work")
    elif t.at == "work":
        if load(memory, t, f"data {t.share}") != t.meeting:
            raise Broken(f"thread {t.number} does share {t.share} of round {t.meeting}, not the first or too early")
        yield buffered("arrive", f"data {t.share}", t.meeting + 1)
    elif t.at in ("arrive", "root"):
        relaxed = fault == "arrivals are relaxed"
        if drained or relaxed:
            count = groups_of(t.size, groups)
            group = group_of(t, groups)
            members = sum(number * count // t.size == group for number in range(t.size))
            name, wanted = (f"arrived {group}", members) if t.at == "arrive" else ("root", count)
            now = memory.get(name, 0) + 1
            after = memory | {name: now}
            last = now == wanted
            yield after, replace(t, at=("reset" if t.at == "arrive" else "reset root") if last else "spin")
    elif t.at == "reset":
        whole = groups_of(t.size, groups) == 1
        if fault == "the counter is set back behind the round":
            yield memory, replace(t, at="choose" if whole else "root")
        else:
            yield buffered("choose" if whole else "root", f"arrived {group_of(t, groups)}", 0)
    elif t.at == "reset root":
        yield buffered("choose", "root", 0)
    elif t.at == "choose":
        for chosen in {t.size, (t.size + 1) // 2}:
            if fault == "the size is written behind the round":
                yield memory, replace(t, at="release", chosen=chosen)
            else:
                yield buffered("release", "size", size_word(t.seen + 1, chosen), chosen=chosen)
    elif t.at == "release":
        yield buffered("look for sleepers", "round", t.seen + 1, release=fault != "the round is relaxed")
    elif t.at == "look for sleepers":
        if drained or fault in ("the round is a release only", "the round is relaxed"):
            yield memory, replace(t, at="wake" if load(memory, t, "sleepers") else "late stores")
    elif t.at == "wake":
        if drained:
            yield {k: v for k, v in memory.items() if not k.startswith("asleep")}, replace(t, at="late stores")
    elif t.at == "late stores":
        if fault == "the size is written behind the round":
            yield buffered("met", "size", size_word(t.seen + 1, t.chosen))
        elif fault == "the counter is set back behind the round":
            yield buffered("met", f"arrived {group_of(t, groups)}", 0)
        else:
            yield memory, replace(t, at="met")
    elif t.at == "spin":
        if load(memory, t, "round") != t.seen:
            yield memory, replace(t, at="read size")
        others = [share for share in range(t.size) if share != t.number] if together else []
        taken = [found for share in others if (found := take(memory, t, share, fault))]
        yield from taken
        late = fault == "sleepers announce themselves after their last look"
        if not taken:
            yield memory, replace(t, at="last look" if late else "announce")
    elif t.at == "announce":
        if drained:
            late = fault == "sleepers announce themselves after their last look"
            after = memory | {"sleepers": memory.get("sleepers", 0) + 1}
            yield after, replace(t, at="sleep blindly" if late else "last look")
    elif t.at == "last look":
        going = "sleep"
        if fault == "sleepers announce themselves after their last look":
            going = "announce"
        elif fault == "the kernel does not compare":
            going = "sleep blindly"
        done = load(memory, t, "round") != t.seen
        yield memory, replace(t, at=("leave" if going != "announce" else "read size") if done else going)
    elif t.at in ("sleep", "sleep blindly"):
        if drained and (t.at == "sleep blindly" or memory.get("round", 0) == t.seen):
            yield memory | {f"asleep {t.number}": 1}, replace(t, at="woken")
        elif drained:
            yield memory, replace(t, at="last look")
    elif t.at == "woken":
        if f"asleep {t.number}" not in memory:
            done = load(memory, t, "round") != t.seen
            yield memory, replace(t, at="leave" if done else "last look")
    elif t.at == "leave":
        if drained:
            yield memory | {"sleepers": memory["sleepers"] - 1}, replace(t, at="read size")
    elif t.at == "read size":
        of, chosen = divmod(load(memory, t, "size"), SIZES)
        behind = of != t.seen + 1 and fault != "who is behind is alone"
        yield memory, replace(t, at="met", chosen=max(chosen, 2) if behind and chosen else chosen)
    elif t.at == "met":
        for other in range(t.size):
            if load(memory, t, f"data {other}") < t.meeting + 1:
                raise Broken(f"thread {t.number} does not see what thread {other} did before meeting {t.meeting}")
        if not 1 <= t.chosen <= t.size:
            raise Broken(f"thread {t.number} is told of {t.chosen} of {t.size} threads")
        over = t.number >= t.chosen or t.meeting + 1 == meetings
        going = "over" if over else "alone" if t.chosen == 1 else "begin"
        yield memory, replace(t, at=going, meeting=t.meeting + 1, size=t.chosen, seen=0, chosen=0)


def explore(threads: int, meetings: int, groups: int = 1, fault: str = "", shares: tuple[bool, ...] = (False,)) -> int:
    """Walks through all states; how many there are.

    Raises:
        Broken: a thread sees too little, waits for ever, or counts another team than the others; a share is done twice.
    """
    first: State = ((), tuple(Thread(i, threads, "begin") for i in range(threads)))
    seen: set[State] = {first}
    open_states: list[State] = [first]
    while open_states:
        memory_items, all_threads = open_states.pop()
        memory, followers = dict(memory_items), 0
        for i, thread in enumerate(all_threads):
            moves = [(memory | {store.name: store.value}, after) for store, after in flushes(thread)]
            moves += step(memory, thread, meetings, groups, fault, shares)
            for after, moved in moves:
                followers += 1
                state = (tuple(sorted(after.items())), (*all_threads[:i], moved, *all_threads[i + 1 :]))
                if state not in seen:
                    seen.add(state)
                    open_states.append(state)
        if not followers and any(thread.at != "over" for thread in all_threads):
            raise Broken(f"for ever: {[(thread.number, thread.at) for thread in all_threads]}, {memory}")
    return len(seen)
