import pytest

from jobs.context import Context
from jobs.errors import Cancelled, Paused, Stopped


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ctx(clock):
    return Context(stages={"read": 1.0, "train": 8.0, "save": 1.0}, clock=clock)


def test_percent_is_of_the_work_by_the_weights_of_the_stages(ctx):
    ctx.stage("read", total=10)
    ctx.advance(5)
    assert ctx.snapshot.percent == pytest.approx(5)
    ctx.stage("train", total=100)
    assert ctx.snapshot.percent == pytest.approx(10)
    ctx.advance(50)
    assert ctx.snapshot.percent == pytest.approx(50)


def test_percent_never_goes_back_not_even_into_an_earlier_stage(ctx):
    ctx.stage("train", total=100)
    ctx.advance(80)
    before = ctx.snapshot.percent
    ctx.stage("read", total=10)
    ctx.at(0)
    assert ctx.snapshot.percent == before


def test_a_resumed_job_starts_from_the_percent_it_had(clock):
    ctx = Context(stages={"all": 1.0}, percent=42.0, clock=clock)
    ctx.stage("all", total=100)
    assert ctx.snapshot.percent == 42.0
    ctx.at(43)
    assert ctx.snapshot.percent == pytest.approx(43)


def test_a_hundred_is_reached_by_success_alone(ctx):
    ctx.stage("save", total=1)
    ctx.advance(1)
    assert ctx.snapshot.percent == 99.9
    ctx.advance(5)
    assert ctx.snapshot.percent == 99.9, "more than the total is not more than everything"


def test_without_a_total_or_without_stages_there_is_no_invented_percent(clock):
    ctx = Context(stages={"read": 1.0}, clock=clock)
    ctx.stage("read", unit="documents")
    ctx.advance(1000)
    assert (ctx.snapshot.percent, ctx.snapshot.done, ctx.snapshot.unit) == (0, 1000, "documents")
    bare = Context(clock=clock)
    bare.stage("anything", total=2)
    bare.advance(1)
    assert bare.snapshot.percent == 0


def test_rate_and_time_left_come_from_the_last_half_minute(ctx, clock):
    ctx.stage("train", total=10_000)
    for _ in range(100):  # slow: 1 a second
        clock.now += 1
        ctx.advance(1)
    for _ in range(60):  # then fast: 100 a second
        clock.now += 1
        ctx.advance(100)
    assert ctx.snapshot.rate == pytest.approx(100, rel=0.05)


def test_the_time_left_fits_a_steady_pace(clock):
    ctx = Context(stages={"all": 1.0}, clock=clock)
    ctx.stage("all", total=200)
    for _ in range(50):
        clock.now += 1
        ctx.advance(1)
    assert ctx.snapshot.eta_seconds == pytest.approx(150, rel=0.05)


def test_resuming_far_inside_a_stage_is_no_burst_of_speed(ctx, clock):
    ctx.stage("train", total=1000)
    ctx.at(900)
    assert ctx.snapshot.rate is None
    for _ in range(10):
        clock.now += 1
        ctx.advance(1)
    assert ctx.snapshot.rate == pytest.approx(1, rel=0.01)
    assert ctx.snapshot.eta_seconds > 50, "the jump to 900 took no time and promises none"


def test_a_kind_may_say_its_position_instead_of_its_steps(ctx, clock):
    ctx.stage("train", total=100)
    for done in range(10, 60, 10):
        ctx.at(done)
        clock.now += 1
    assert ctx.snapshot.done == 50 and ctx.snapshot.rate == pytest.approx(40 / 4, rel=0.3)


def test_a_pace_that_stands_still_is_no_rate(ctx, clock):
    ctx.stage("train", total=100)
    ctx.at(10)
    clock.now += 100
    ctx.at(10)
    assert ctx.snapshot.rate is None


def test_metrics_of_one_step_add_up_and_what_is_not_finite_is_missing(ctx):
    ctx.metric(5, loss=1.5)
    ctx.metric(5, l0=float("nan"), ev=float("inf"))
    assert ctx.take_metrics() == {5: {"loss": 1.5, "l0": None, "ev": None}}
    assert ctx.take_metrics() == {}


def test_metrics_that_could_not_be_written_come_back_under_newer_ones(ctx):
    ctx.metric(5, loss=1.0, l0=2.0)
    taken = ctx.take_metrics()
    ctx.metric(5, loss=9.0)
    ctx.give_back(taken)
    assert ctx.take_metrics() == {5: {"loss": 9.0, "l0": 2.0}}


@pytest.mark.parametrize(("word", "error"), [("cancel", Cancelled), ("pause", Paused), ("stop", Stopped)])
def test_check_raises_what_was_wished(ctx, word, error):
    ctx.check()
    assert ctx.wish() is None
    ctx.wished = word
    assert ctx.wish() == word
    with pytest.raises(error):
        ctx.check()


def test_a_wish_to_finish_early_is_no_exception(ctx):
    ctx.wished = "finish"
    ctx.check()
    assert ctx.wish() == "finish"


def test_the_log_is_what_is_printed(ctx, capsys):
    ctx.log("loaded")
    assert capsys.readouterr().out.endswith(" loaded\n")


def test_the_log_names_each_stage_and_now_and_then_what_was_measured(ctx, clock, capsys):
    ctx.stage("read")
    ctx.stage("train", total=3000, unit="tokens")
    for step in range(1, 31):
        clock.now += 1
        ctx.metric(step, fvu=1 / step)
    told = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert told == ["read", "train: 3,000 tokens", "step 1: fvu 1", "step 11: fvu 0.09091", "step 21: fvu 0.04762"]


def test_any_kind_runs_with_nothing_but_a_context(tmp_path):
    from jobs.kinds import sleepy

    ctx = Context(stages=sleepy.STAGES)
    assert sleepy.run(sleepy.Params(steps=4, seconds=0, folder=str(tmp_path)), ctx) == {"steps": 4, "total": 6}
    assert ctx.snapshot.stage == "sleep" and ctx.snapshot.done == 4


def test_what_is_told_of_a_stage_enters_it_and_leaves_where_that_is_wished_for(ctx):
    ctx.stage("read", total=10)
    told = ctx.reaching("train", "tokens")
    assert ctx.snapshot.stage == "read", "nothing has been done of it yet"
    told(50, 200)
    told(100, 200)
    assert (ctx.snapshot.stage, ctx.snapshot.total, ctx.snapshot.unit) == ("train", 200, "tokens")
    assert ctx.snapshot.percent == pytest.approx(50)
    ctx.wished = "pause"
    with pytest.raises(Paused):
        told(150, 200)
    assert ctx.snapshot.done == 150, "what was done is seen, also where it ends"
