"""What the server does when things go wrong: bad versions, too much load, killed workers, malformed requests."""

import json
import os
import signal
import threading
import time
from collections import Counter
from functools import partial

import numpy as np

from benchmarks.latency_tower import request_of, write_tower
from benchmarks.server_bench import MODEL, Bench, Result, point
from benchmarks.server_bundles import BAD, publish
from benchmarks.server_fuzz import Valid, malformed, send
from benchmarks.server_peers import encoded
from benchmarks.server_process import Server, until
from ctrkit_serving.bench.answers import Answers
from ctrkit_serving.bench.http_load import open_loop
from ctrkit_serving.scorer import Scorer


def pushes(bench: Bench) -> Result:
    """20 versions, 6 of them bad, pushed under a constant load of half the capacity."""
    good, bad, apart = (4, 2, 1.5) if bench.quick else (14, 6, 3.0)
    kinds = list(BAD)[-bad:]
    aside = bench.directory / "aside"
    numbers = list(range(2, 2 + good + bad))
    bad_numbers = dict(zip(numbers[1 :: max(2, len(numbers) // bad)], kinds, strict=False))
    expected = {1: bench.scorer.score_ids(bench.feeds[0])}
    for number in numbers:
        if number in bad_numbers:
            spoil = BAD[bad_numbers[number]][0]
            publish(aside, MODEL, number, partial(spoil, bench.models / MODEL / "1"))
        else:
            place = publish(aside, MODEL, number, partial(write_tower, seed=number))
            expected[number] = Scorer.load(place).score_ids(bench.feeds[0])
    with bench.server() as server:
        rate = bench.capacity(server) / 2
        raw, seconds = bench.raw(which=[0]), apart * len(numbers) + 3
        quiet = open_loop(server.place, raw, rate=rate, seconds=seconds / 3)

        def decided(number: int) -> bool:
            return bool(server.find("serving", version=number) or server.find("rejected", version=number))

        def push() -> None:
            for number in numbers:
                (aside / MODEL / str(number)).rename(bench.models / MODEL / str(number))
                time.sleep(apart)
                until(partial(decided, number))

        pusher = threading.Thread(target=push)
        pusher.start()
        answers = open_loop(server.place, raw, rate=rate, seconds=seconds, keep_bodies=True)
        pusher.join()
        until(lambda: len(server.find("serving")) + len(server.find("rejected")) == 1 + len(numbers))
        reasons = {bad_numbers[event["version"]]: event["reason"] for event in server.find("rejected")}
        served = sorted(event["version"] for event in server.find("serving"))
    wrong, seen = 0, Counter[int]()
    for body in answers.bodies:
        version = int(json.loads(body[: len(body) - 4 * bench.ads])["model_version"])
        seen[version] += 1
        wrong += not np.array_equal(np.frombuffer(body[-4 * bench.ads :], np.float32), expected[version])
    return {
        "pushed": len(numbers), "rejected": reasons, "expected_bad": sorted(bad_numbers), "served": served,
        "requests": len(answers.status),
        "failed_requests": len(answers.status) - answers.status.count(200) + answers.lost,
        "wrong_version_scores": wrong, "versions_that_answered": len(seen),
        "p99_quiet_ms": float(np.quantile(quiet.latency(), 0.99)),
        "p99_pushing_ms": float(np.quantile(answers.latency(), 0.99)),
        "p50_quiet_ms": float(np.median(quiet.latency())), "p50_pushing_ms": float(np.median(answers.latency())),
    }  # fmt: skip


def reloads(bench: Bench) -> Result:
    """Resident memory over reloads: three versions in turn, so that each is checked and loaded anew."""
    count = 12 if bench.quick else 200
    for version in (1001, 1002, 1003):
        bench.push(version)
    memory = []
    with bench.server("--poll", "0", "--latency-ads", "50", "--max-latency-ratio", "0") as server:
        for i in range(count):
            status, answer = server.manage(f"models/{MODEL}/load", {"version": 1001 + i % 3})
            assert status == 200, answer
            memory.append(server.memory_mib())
    third = count // 3
    return {
        "reloads": count, "memory_mib_first": float(np.median(memory[third : third + 6])),
        "memory_mib_last": float(np.median(memory[-6:])), "memory_mib": memory[:: max(1, count // 20)],
    }  # fmt: skip


def overload(bench: Bench) -> Result:
    """Twice the capacity; each request has 50 ms. Then half the capacity again."""
    deadline, seconds = 50, 5 if bench.quick else 60
    with bench.server() as server:
        capacity = bench.capacity(server)
        raw = bench.raw(deadline)
        answers = open_loop(server.place, raw, rate=2 * capacity, seconds=seconds, connections=200)
        after = open_loop(server.place, raw, rate=capacity / 2, seconds=seconds / 6)
        restarts = server.metric("ctrkit_worker_restarts_total")
    accepted, shed = answers.latency(), answers.latency(503)
    accepted_sent, shed_sent = answers.latency(from_due=False), answers.latency(503, from_due=False)
    return {
        "capacity_rps": capacity, "offered_rps": (len(answers.status) + answers.lost) / answers.seconds,
        "deadline_ms_of_requests": deadline, "accepted": answers.share(200),
        "goodput_rps": len(accepted) / answers.seconds,
        "accepted_p99_ms": float(np.quantile(accepted, 0.99)), "shed_p99_ms": float(np.quantile(shed, 0.99)),
        "accepted_p99_from_sent_ms": float(np.quantile(accepted_sent, 0.99)),
        "shed_p50_from_sent_ms": float(np.median(shed_sent)),
        "shed_p99_from_sent_ms": float(np.quantile(shed_sent, 0.99)),
        "other_statuses": len(answers.status) - len(accepted) - len(shed), "lost": answers.lost,
        "after": point(after), "restarts": restarts,
    }  # fmt: skip


def kill(bench: Bench) -> Result:
    """kill -9 of one of two workers under load: until not ready, until ready again, requests lost."""
    rounds = 2 if bench.quick else 10
    with bench.server("--no-pin", workers=2) as server:
        rate = 200.0
        lost, not_ready_ms, back_ms = 0, [], []
        for round_ in range(rounds):
            found: list[Answers] = []
            loader = threading.Thread(
                target=lambda seed=round_, found=found: found.append(
                    open_loop(server.place, bench.raw(), rate=rate, seconds=3, seed=seed, connections=8)
                )
            )
            loader.start()
            time.sleep(0.5)
            starts = len(server.find("worker ready"))
            killed = time.perf_counter()
            os.kill(server.pids()[round_ % 2], 9)
            until(lambda: _not_ready(server))
            not_ready_ms.append((time.perf_counter() - killed) * 1e3)
            server.wait("worker ready", count=starts + 1)
            until(lambda: not _not_ready(server))
            back_ms.append((time.perf_counter() - killed) * 1e3)
            loader.join()
            lost += found[0].lost + len(found[0].status) - found[0].status.count(200)
    return {
        "kills": rounds, "lost_requests": lost, "not_ready_after_ms_max": max(not_ready_ms),
        "ready_after_ms_median": float(np.median(back_ms)), "ready_after_ms_max": max(back_ms),
    }  # fmt: skip


def _not_ready(server: Server) -> bool:
    try:
        return not server.ready()
    except OSError:  # a connection that the killed worker had taken
        return True


def sigterm(bench: Bench) -> Result:
    """SIGTERM under load, whose clients learn of it a second and a half later, within the drain delay."""
    rounds, drain_s = 2 if bench.quick else 10, 4.0
    failed, answered, codes, not_ready_ms = 0, 0, Counter[int](), []
    for seed in range(rounds):
        with bench.server("--drain-delay", str(drain_s)) as server:
            found: list[Answers] = []
            load = partial(open_loop, server.place, bench.raw(), rate=100.0, seconds=drain_s / 2, seed=seed)
            loader = threading.Thread(target=lambda found=found, load=load: found.append(load()))
            loader.start()
            time.sleep(0.5)
            started = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            until(partial(_not_ready, server))
            not_ready_ms.append((time.perf_counter() - started) * 1e3)
            loader.join()
            codes[server.process.wait(30)] += 1
        answered += found[0].status.count(200)
        failed += found[0].lost + len(found[0].status) - found[0].status.count(200)
    return {
        "sigterms": rounds, "answered": answered, "failed_requests": failed, "exit_codes": dict(codes),
        "not_ready_after_ms_max": max(not_ready_ms),
    }  # fmt: skip


def malformed_requests(bench: Bench) -> Result:
    """10,000 requests that are wrong; the server's memory before and after, and every 5xx."""
    count = 1000 if bench.quick else 10_000
    rng = np.random.default_rng(0)
    small = request_of(rng, 4)
    valid = Valid(MODEL, encoded(bench.scorer, small), small.to_json())
    statuses: Counter[str] = Counter()
    with bench.server() as server:
        for i in range(2 * count):  # the first half warms every path
            if i == count:
                before = server.memory_mib()
                statuses.clear()
            status = send(server.place, malformed(rng, valid)[1])
            statuses[str(status)] += 1
        after = server.memory_mib()
        restarts = server.metric("ctrkit_worker_restarts_total")
    return {
        "malformed": count, "statuses": dict(sorted(statuses.items())), "restarts": restarts,
        "5xx": sum(number for status, number in statuses.items() if status.startswith("5")),
        "memory_mib_before": before, "memory_mib_after": after,
    }  # fmt: skip
