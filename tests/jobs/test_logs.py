import pytest

from jobs.logs import clean, last_lines, log_path, open_log, read_on, read_tail, trim


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("plain\n", "plain\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        (" 10%\r 50%\r100%\n", "100%\n"),
        (" 10%\r 50%\r", " 50%"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("bell\x07 and nul\x00", "bell\\x07 and nul\\x00"),
        ("tab\tstays", "tab\tstays"),
        ("evil\u202egnp.exe", "evil\\x202egnp.exe"),
        ("<script>", "<script>"),
    ],
)
def test_output_is_shown_as_a_terminal_would_leave_it(printed, shown):
    assert clean(printed) == shown


@pytest.mark.django_db
def test_each_attempt_appends_under_its_own_heading(row):
    import os

    job = row(attempt=1)
    for attempt in (1, 2):
        job.attempt = attempt
        descriptor = open_log(job)
        os.write(descriptor, b"hello\n")
        os.close(descriptor)
    text = log_path(job).read_text()
    assert text.index("--- attempt 1") < text.index("hello") < text.index("--- attempt 2")


def test_a_log_that_grows_is_cut_to_its_last_lines_and_says_so(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"".join(b"line %06d\n" % n for n in range(10_000)))
    writer = path.open("ab")  # the job holds it open meanwhile
    trim(path, limit=50_000, kept=1000)
    writer.write(b"the job goes on\n")
    writer.close()
    lines = path.read_text().splitlines()
    assert lines[0].endswith("bytes before this line were dropped")
    assert lines[-2:] == ["line 009999", "the job goes on"] and path.stat().st_size < 1200


def test_a_short_or_missing_log_is_left_alone(tmp_path):
    trim(tmp_path / "none")
    path = tmp_path / "log.txt"
    path.write_text("short\n")
    trim(path)
    assert path.read_text() == "short\n"
    assert read_tail(tmp_path / "none") == ""


def test_the_tail_starts_with_a_whole_line(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("first line\nsecond line\nthird line\n")
    assert read_tail(path, size=25) == "second line\nthird line\n"
    assert last_lines(path, 1) == "third line"


def test_bytes_that_are_no_text_do_not_break_the_tail(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"\xff\xfe broken \xc3\n")
    assert "broken" in read_tail(path)


def test_a_log_is_followed_from_where_one_was_and_anew_when_it_was_cut(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("one\n")
    text, at = read_on(path, 0)
    assert (text, at) == ("one\n", 4) and read_on(path, at) == ("", 4)
    path.write_text("one\ntwo\n")
    assert read_on(path, at) == ("two\n", 8)
    path.write_text("cut\n")
    assert read_on(path, 8) == ("cut\n", 4)
    assert read_on(tmp_path / "none", 3) == ("", 3)
