"""The engine on a Ray cluster: on its nodes, warm processes that do one run after another."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.run.lock import holder

from common.errors import UserError
from scripts.launching import ray_node
from scripts.launching.demand import Demand
from scripts.launching.plan import Ended, Task
from scripts.launching.ray_connection import OWN, check_reachable, connect
from scripts.launching.ray_needs import asked_gpus, node_name, plan_needs
from scripts.launching.ray_place import place_of

SECONDS_BETWEEN_LOOKS = 0.2  # at signals
SECONDS_BETWEEN_NODES = 1.0  # looks at which nodes there are
SECONDS_TO_CHECK = 60.0  # in which a node starts a process that looks at what it sees
SECONDS_FOR_ROOM = 30.0  # in which a host starts where nobody else is
SECONDS_TO_LET_GO = 5.0  # in which a process ends that has lost its host
SECONDS_IDLE = 30.0  # after which a host makes room for others
MOST_LOSSES = 5  # of hosts under one task, where nodes are lost
MOST_FAILED = 3  # hosts that do not start on a node


def check(demand: Demand) -> None:
    """Raise UserError where Ray is missing, TASK_GPUS is no number, or nothing answers at the address."""
    asked_gpus(demand.task_gpus)
    check_reachable(demand.address)


def make(demand: Demand, say: Callable[[str], None]) -> "RayEngine":
    """The engine on the cluster at an address, or on one that is started here.

    Raises:
        UserError: Ray cannot be reached, a node lacks something, or no node has what a run takes.
    """
    ray = connect(demand.address)
    try:
        return RayEngine(ray, demand, say)
    except BaseException:
        ray.shutdown()
        raise


@dataclass(eq=False)
class _Node:
    """A node of the cluster.

    Attributes:
        id: Ray's.
        name: for messages.
        fit: how many runs it holds at once.
        cpus: of each of them.
        slots: as `fit`, or 0 as long as it is not known to see what it should, or was left out.
        failed: how many hosts did not start there since the last one that did.
    """

    id: str
    name: str
    fit: int
    cpus: int
    slots: int = 0
    failed: int = 0


@dataclass(eq=False)
class _Host:
    """A `ray_node.Host`, and what it does.

    Attributes:
        actor: it.
        node: where.
        hears: what its next word comes by: that it is ready, or of its task; None: it has nothing to do.
        task: None: none.
        began: whether it has begun that.
        since: when it was started, or had nothing to do any more.
    """

    actor: Any
    node: _Node
    hears: Any
    task: Task | None = None
    began: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def is_idle(self) -> bool:
        return self.hears is None


class RayEngine:
    """See `scripts.launching.plan.Engine`. Hosts start when there is something to do, and end after a while without.

    A host that dies takes its task alone with it: another one does that once more, going on where it stopped; if its
    node was lost, more often. Nodes that join are used, once they have shown that they see what this one sees.

    Args:
        ray: the package, connected.
        demand: what is asked.
        say: told what runs say on stderr, and what became of hosts and nodes.

    Raises:
        UserError: a node lacks something, or none has what a run takes.
    """

    def __init__(self, ray: Any, demand: Demand, say: Callable[[str], None]) -> None:
        self.ray, self.say = ray, say
        self.at_most = demand.n_jobs()
        self.is_own = demand.address in OWN
        self.place = place_of(demand)
        alive = self._alive()
        self.needs = plan_needs(demand, list(alive.values()))
        self.nodes: dict[str, _Node] = {}
        self.looking: dict[Any, _Node] = {}  # by the answer that is waited for
        self.looked = time.monotonic()
        self.hosts: list[_Host] = []
        self.queued: list[Task] = []
        self.losses: dict[Task, list[_Node | None]] = {}  # the nodes of hosts it was lost with; None: not yet begun
        self.kept: dict[Task, float] = {}  # since when what was lost is known to keep its folder
        self.once = set[str]()  # lines that were said, and are not said again
        self.told = 0
        for node in alive.values():
            self._look_at(node)
        self._check_nodes()

    @property
    def slots(self) -> int:
        """As many as the nodes hold; never 0, since a node may come."""
        held = sum(node.slots for node in self.nodes.values())
        return max(1, held if self.at_most is None else min(held, self.at_most))

    @property
    def several(self) -> bool:
        return self.slots > 1 or (not self.is_own and self.at_most != 1)

    @property
    def on_gpu(self) -> bool:
        return bool(self.needs.gpus)

    @property
    def workers_each(self) -> int:
        return self.needs.workers

    def submit(self, task: Task) -> None:
        self.queued.append(task)

    def next_end(self) -> Ended | None:
        if self.told and self.queued:
            return Ended(self.queued.pop(), 128 + self.told)
        self._follow_nodes()
        if self.queued and self._is_hopeless():
            self._say_once("Note: no node is left that runs could be done on; those that are not done fail")
            return Ended(self.queued.pop(0), 1, "no node is left that it could be done on")
        self._hand_out()
        self._end_idle()
        self._say_what_waits()
        waits = {host.hears: host for host in self.hosts if host.hears is not None}
        if not waits and not self.looking:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            return None
        ready, _ = self.ray.wait([*waits, *self.looking], timeout=SECONDS_BETWEEN_LOOKS)
        for found in ready:
            if found in self.looking:
                self._joined(self.looking.pop(found), found)
            elif ended := self._heard(waits[found]):
                return ended
        return None

    def interrupt(self, number: int) -> None:
        self.told = number
        for host in self.hosts:
            if host.task is not None:
                host.actor.interrupt.remote(number)

    def rest(self) -> None:
        if self.is_own:
            return
        for host in [host for host in self.hosts if host.task is None]:  # those that start, too: nobody hears of them
            self._end(host)

    def close(self) -> None:
        while self.hosts:
            self.ray.kill(self.hosts.pop().actor)
        self.ray.shutdown()

    def _say_once(self, line: str) -> None:
        if line not in self.once:
            self.once.add(line)
            self.say(line)

    # ---- nodes ----

    def _alive(self) -> dict[str, dict[str, Any]]:
        return {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}

    def _look_at(self, found: dict[str, Any]) -> None:
        """Have a node say what it lacks, if it can hold a run."""
        fit = self.needs.fit(found["Resources"])
        node = _Node(found["NodeID"], node_name(found), fit, self.needs.cpus(found["Resources"]) if fit else 0)
        self.nodes[node.id] = node
        if not fit and found["Resources"].get("CPU"):  # one without CPUs is meant to hold none
            self._say_once(f"Note: node {node.name} holds no runs. {self.needs.lacking(found['Resources'])}")
        if fit:
            look = self.ray.remote(ray_node.look)
            options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": self._on(node)}
            self.looking[look.options(**options).remote(self.place)] = node

    def _on(self, node: _Node) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def _lacks(self, node: _Node, ref: Any) -> list[str]:
        """What a node says that it lacks; if that is nothing, it is used."""
        try:
            lacks = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            lacks = [f"it cannot be asked ({_last_line(error)})"]
        node.slots = 0 if lacks else node.fit
        return lacks

    def _check_nodes(self) -> None:
        """Wait for what nodes say that they lack; UserError if that is anything."""
        ready, silent = self.ray.wait(list(self.looking), num_returns=len(self.looking), timeout=SECONDS_TO_CHECK)
        found = [(self.looking[ref].name, self._lacks(self.looking[ref], ref)) for ref in ready]
        found += [(self.looking[ref].name, [f"it says nothing in {SECONDS_TO_CHECK:.0f} s"]) for ref in silent]
        self.looking.clear()
        if lines := [f"  {name}: {'; '.join(lacks)}" for name, lacks in sorted(found) if lacks]:
            raise UserError(
                "Not every node of the cluster sees what this one sees:\n" + "\n".join(lines) + "\nRuns need the same "
                "repository, data, OUTPUT and packages at the same paths: mend that, or end Ray there (`ray stop`)."
            )

    def _joined(self, node: _Node, ref: Any) -> None:
        if lacks := self._lacks(node, ref):
            self.say(f"Note: node {node.name}, which has joined, is left out: {'; '.join(lacks)}")
        else:
            self.say(f"Note: node {node.name} has joined; {self.slots} runs at once")

    def _follow_nodes(self, at_once: bool = False) -> None:
        """From time to time, or at once, forget nodes that are gone, and look at those that have joined."""
        if not at_once and time.monotonic() < self.looked + SECONDS_BETWEEN_NODES:
            return
        self.looked = time.monotonic()
        alive = self._alive()
        for node in [node for node in self.nodes.values() if node.id not in alive]:
            del self.nodes[node.id]
            if node.slots:
                self.say(f"Note: node {node.name} is gone; {self._whats_left()}")
        for found in alive.values():
            if found["NodeID"] not in self.nodes:
                self._look_at(found)

    def _is_hopeless(self) -> bool:
        """Whether there is no host, nor a node for one, and none will come, or there are some where none starts."""
        nodes = self.nodes.values()
        if self.hosts or self.looking or any(node.slots for node in nodes):
            return False
        return self.is_own or any(node.failed >= MOST_FAILED for node in nodes)

    def _whats_left(self) -> str:
        return (
            f"{self.slots} runs at once" if any(node.slots for node in self.nodes.values()) else "waiting for another"
        )

    # ---- hosts ----

    def _hand_out(self) -> None:
        """Give what is queued to hosts, and start some where these are too few."""
        idle = [host for host in self.hosts if host.is_idle]
        open_tasks = [task for task in self.queued if not self._is_kept(task)]
        n_given = min(len(idle), len(open_tasks))
        for task in open_tasks[:n_given]:
            host = idle.pop()
            self.queued.remove(task)
            host.task, host.began, host.hears = task, False, host.actor.do.remote(task)
        for _ in range(len(open_tasks) - n_given - len(self._starting())):
            if not self._start():
                break

    def _is_kept(self, task: Task) -> bool:
        """Whether what was lost with its host still has a task's folder: it may take a moment to end."""
        who = holder(task.folder) if task in self.losses else None
        if who is None:
            self.kept.pop(task, None)
            return False
        since = self.kept.setdefault(task, time.monotonic())
        if time.monotonic() > since + SECONDS_TO_LET_GO:
            self._say_once(f"{task.title}: {who} still has {task.folder}, so its end is waited for")
        return True

    def _starting(self) -> list[_Host]:
        return [host for host in self.hosts if host.task is None and not host.is_idle]

    def _end_idle(self) -> None:
        """End hosts that have had nothing to do for some time: other launchers may wait for their cores."""
        longest = time.monotonic() - SECONDS_IDLE
        for host in [host for host in self.hosts if host.is_idle and host.since < longest and not self.is_own]:
            self._end(host)

    def _end(self, host: _Host) -> None:
        self.hosts.remove(host)
        self.ray.kill(host.actor)

    def _say_what_waits(self) -> None:
        """Say of a host that does not start why that may be."""
        for host in self._starting():
            if time.monotonic() > host.since + SECONDS_FOR_ROOM:
                self._say_once(
                    f"Note: node {host.node.name} has had no room for a run for {SECONDS_FOR_ROOM:.0f} s: others use "
                    "it, or processes take long to start there"
                )

    def _start(self) -> bool:
        """Start a host on the node that has the most room; returns whether there was one."""
        taken = Counter(host.node for host in self.hosts)
        node = max(self.nodes.values(), key=lambda node: node.slots - taken[node], default=None)
        if node is None or taken[node] >= node.slots:
            return False
        actor = (
            self.ray.remote(ray_node.Host)
            .options(
                num_cpus=node.cpus,
                num_gpus=self.needs.gpus,
                max_restarts=0,
                max_concurrency=2,  # a task, and the signal that ends it
                scheduling_strategy=self._on(node),
            )
            .remote(self.place, bool(self.needs.gpus))
        )
        self.hosts.append(_Host(actor, node, actor.ready.remote()))
        return True

    def _heard(self, host: _Host) -> Ended | None:
        """What follows from a host's word: an exit code and why, or a line that is said."""
        try:
            word = self.ray.get(host.hears if host.task is None else next(host.hears))
        except (self.ray.exceptions.RayError, StopIteration) as error:
            return self._lost(host, error)
        if isinstance(word, str):
            self.say(word)
        elif host.task is not None and word is None:
            host.began = True
        else:
            task, host.task, host.hears, host.since = host.task, None, None, time.monotonic()
            if task is not None:
                return Ended(task, *word)
            host.node.failed, host.node.slots = 0, host.node.fit  # where it was left out, it is used again
        return None

    def _lost(self, host: _Host, error: Exception) -> Ended | None:
        """Go on without a host that died, or is out of reach."""
        self._end(host)
        task, node = host.task, host.node
        self._follow_nodes(at_once=True)
        is_there = node.id in self.nodes
        if task is None:
            node.failed += 1
            if is_there and node.failed == MOST_FAILED and not self.told:
                node.slots = 0
                self.say(f"Note: node {node.name} is left out, its processes do not start: {_last_line(error)}")
            return None
        if self.told:
            return Ended(task, 128 + self.told)
        losses = self.losses.setdefault(task, [])
        losses.append(node if host.began else None)
        own = sum(lost is not None and lost.id in self.nodes for lost in losses)
        if own > 1 or len(losses) > MOST_LOSSES:
            why = f"its process on node {node.name} died as well: {_last_line(error)}"
            self.say(f"{task.title}: {why}")
            return Ended(task, 1, why)
        if host.began:
            self.say(f"{task.title}: its process on node {node.name} died; once more, going on where it stopped")
        self.queued.insert(0, task)
        return None


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
