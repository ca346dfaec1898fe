"""The report page: as a string, in a browser without a network, and of runs that are not as they should be."""

import base64
import dataclasses
import hashlib
import importlib
import json
import re
import shutil

import jax
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from charlm_jax.analysis.reader import Reading, Text, as_json, unknown_words
from charlm_jax.analysis.report import Epoch, Picture, Run, make_report, shown
from charlm_jax.analysis.text_statistics import find_words
from charlm_jax.errors import InputError
from charlm_jax.generation.surprisal import surprisal
from charlm_jax.runs import gathering
from charlm_jax.runs.directory import open_run
from charlm_jax.runs.gathering import gather
from charlm_jax.runs.records import append_record, read_records
from charlm_jax.runs.trained import load_text, read_run

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&amp;\"' \u202eevil\x00\x1b[2J\u2028."
)
LONE = "\ud83d\udc00\ud800"  # three code points in Python; to JavaScript, a surrogate pair and half of one
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="30"><script>window.hacked=1</script></svg>'
SETTINGS = {"hidden size": 8, "window": 10, "stride": 2, "held out fraction": 0.1, "learning rate": 0.01}
ORIGIN = {"commit": None, "jax": "0.10.2", "corpus": "a", "sha256": "0" * 64}


def a_text(text, *, epoch=1, temperature=0.5, prompt="the ", likeliest="eta", **changes):
    """Return a text with surprisals of 0, 0.5, 1, ... nats, and probabilities of 0.5, 0.25 and 0.125 everywhere."""
    reading = Reading(
        np.arange(len(text)) % 20 / 2, likeliest * len(text), np.tile(np.array([0.5, 0.25, 0.125]), (len(text), 1))
    )
    fields = {"source": "samples.jsonl", "sampler": "stateful", "reading": reading, "unknown": [], **changes}
    return Text(epoch=epoch, temperature=temperature, prompt=prompt, text=text, **fields)


def a_run(name, texts=(), *, configuration=(), losses=(2.0, 1.5, 1.75), pictures=(), notes=(), **changes):
    epochs = [Epoch(epoch, loss + 0.25, loss, 2.0, 100) for epoch, loss in enumerate(losses, start=1)]
    return Run(
        name,
        {**SETTINGS, **dict(configuration)},
        ORIGIN,
        1234,
        epochs,
        pictures,
        texts,
        **{"step": 7, "notes": notes, **changes},
    )


def plain(page):
    """Return the text of a page, without tags and pictures."""
    return " ".join(re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", page, flags=re.S).split())


def test_words_are_runs_of_letters_and_a_cut_one_is_not_judged():
    assert [match.group() for match in find_words(" Über-man's 2nd naïve_x ")] == [
        "Über",
        "man",
        "s",
        "nd",
        "naïve",
        "x",
    ]
    known = frozenset({"the", "will"})
    assert unknown_words("th", "e will THE wil wi", known) == [(11, 14)]
    assert unknown_words("wi", "ll of", known) == [], "the last word may go on"
    assert unknown_words("xy", "z will.", known) == [(0, 1)], "what the text adds to a word of the prompt"
    assert unknown_words("xyz", " will.", known) == [], "the prompt's own words are not the model's"
    assert unknown_words("", "xyz.", known) == [(0, 3)]


def test_what_differs_comes_first_and_what_is_shared_after_it():
    runs = [a_run("small", losses=(2.0, 1.5)), a_run("large", losses=(1.9, 1.25), configuration={"hidden size": 64})]
    page = make_report("grid", runs)
    assert page == make_report("grid", runs), "the same page, byte by byte"
    said = plain(page)
    assert "run hidden size small 8 large 64" in said
    assert said.index("large 64") < said.index("What all of them share") < said.index("learning rate 0.01")
    assert "lowest held-out loss 1.2500 nats per character the same in bits 1.8034" in said
    assert said.index("How the loss fell") < said.index("Results") < said.index("What they write")
    assert "large 1.2500 1.8034 2 1.5000 2 1,234 4.0 50" in said
    assert len(re.findall(r'<img src="data:image/svg', page)) == 2


def test_what_only_one_run_has_is_a_difference():
    for names in ("ab", "ba"):
        runs = {"a": a_run("a"), "b": dataclasses.replace(a_run("b"), provenance={**ORIGIN, "flax": "9", "jax": "8"})}
        said = plain(make_report("x", [runs[name] for name in names]))
        assert "code, versions, device, text run jax flax" in said
        assert "a 0.10.2 none" in said
        assert "b 8 9" in said


def test_losses_of_different_texts_have_no_winner():
    other = dataclasses.replace(a_run("other"), provenance={**ORIGIN, "sha256": "1" * 64})
    assert "The runs differ in their text: the losses cover different" in plain(make_report("x", [a_run("one"), other]))
    assert 'class="headline"' not in make_report("x", [a_run("one"), other])


def test_a_run_that_has_done_nothing_yet_has_a_page():
    said = plain(make_report("new", [a_run("new", losses=(), step=None)]))
    assert "No epoch is done yet." in said
    assert "new – – – – 0 1,234 unknown unknown" in said
    page = make_report("x", [a_run("one"), a_run("new", losses=()), a_run("whole", losses=(1.0,))])
    legend = re.findall(r"<bdi>(\w+)", re.findall(r'<ul class="legend">.*?</ul>', page, re.S)[0])
    assert legend == ["one", "whole"]


@pytest.mark.parametrize("loss", [1e300, -1e300, 0.0])
def test_any_finite_loss_is_drawn(loss):
    make_report("odd", [a_run("odd", losses=(2.0, loss, 1.0)), a_run("other", losses=(loss,))])


def test_nothing_that_a_run_says_becomes_html():
    text = a_text(HOSTILE + LONE, prompt=HOSTILE, likeliest=f"<&{LONE[0]}", source=HOSTILE)
    run = a_run(HOSTILE + LONE, [text], configuration={HOSTILE: HOSTILE}, pictures=[Picture(HOSTILE, SVG)])
    page = make_report(HOSTILE, [run, dataclasses.replace(run, name="b", configuration={**SETTINGS, HOSTILE: "c"})])
    page.encode()
    assert not re.search("[\x00-\x09\x0b-\x1f\u2028\u202e]", page)
    assert "<img src=x" not in page
    assert "://" not in page
    assert re.findall(r"<script[^>]*>", page) == [
        '<script type="application/json" id="texts">',
        '<script type="module">',
    ]
    assert "‹U+202E›evil‹U+0000›‹U+001B›[2J‹U+2028›" in page
    (data,) = re.findall(r'<script type="application/json" id="texts">(.*?)</script>', page)
    assert json.loads(data)[0]["texts"][0]["text"] == HOSTILE + 3 * "\N{REPLACEMENT CHARACTER}"
    (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.S)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in page


def test_json_survives_every_character():
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x3000), 0x10FFFF, 0x1F600, 0xE0001]))
    encoded = as_json([text])
    assert json.loads(encoded) == [text]
    assert all(character.isprintable() and character not in "<>&" for character in encoded)
    assert shown("a\tb") == "a‹U+0009›b"


@pytest.mark.parametrize("alphabet", ["the will to power ", "天地玄黄宇宙洪荒日月"])
def test_a_grid_of_twelve_runs_is_under_two_megabytes(alphabet):
    generator = np.random.default_rng(0)

    def sentence(length):
        return "".join(generator.choice(list(alphabet), length))

    def text(epoch, temperature):
        reading = Reading(generator.exponential(2, 400), sentence(1200), generator.random((400, 3)))
        return a_text(sentence(400), epoch=epoch, temperature=temperature, prompt=sentence(60), reading=reading)

    runs = [
        a_run(f"run-{number}", [text(epoch, t) for epoch in (1, 2, 3) for t in (0.2, 0.5, 1.0, 1.2)])
        for number in range(12)
    ]
    assert len(make_report("grid", runs).encode()) < 2_000_000


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no Chromium to look at the page with: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def look(browser, tmp_path):
    """Open pages; afterwards assert that they requested nothing, logged nothing, and ran no scripts but their own."""

    def open_page(page):
        (tmp_path / "report.html").write_text(page, encoding="utf-8")
        browser.get((tmp_path / "report.html").as_uri())
        return lambda name: browser.find_element(By.ID, name)

    yield open_page
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith("data:") or url == (tmp_path / "report.html").as_uri() for url in asked)
    assert not browser.execute_script("return window.hacked")


RUNS = [
    a_run(
        "first",
        [
            a_text(f"will at {temperature:g} in {epoch}.", epoch=epoch, temperature=temperature, unknown=[(0, 4)])
            for epoch in (1, 2, 4)
            for temperature in (0.2, 0.5, 1.0)
        ],
    ),
    a_run("second", [a_text("other\nlines", prompt=prompt) for prompt in ("a ", "b ")], notes=["A note."]),
    a_run("unread", [a_text("no model", reading=None, unknown=None)], step=None),
]


def test_the_reader_is_used_with_the_keyboard_alone(browser, look):
    find = look(make_report("grid", RUNS))
    assert find("text").text == "the will at 1 in 4."
    assert "Epoch 4 · temperature 1 · 15 characters · 3.50 nats per character" in find("summary").text
    assert "1 unknown word" in find("summary").text
    assert "the one of step 7" in find("shading").text
    assert len(browser.find_elements(By.CSS_SELECTOR, ".unknown")) == 4

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    def tab_to(wanted):
        for _ in range(40):
            press(Keys.TAB)
            focused = browser.switch_to.active_element
            if wanted in (focused.get_attribute("id"), focused.get_attribute("name")):
                seen = "arguments[0].type === 'radio' ? arguments[0].nextSibling : arguments[0]"
                outline = browser.execute_script(f"return getComputedStyle({seen}).outlineStyle", focused)
                assert outline == "solid", f"one sees that {wanted} has the focus"
                return
        raise AssertionError(f"Tab does not lead to {wanted}")

    tab_to("earlier")
    press(Keys.ENTER)
    assert find("text").text == "the will at 1 in 2."
    press(Keys.ENTER, Keys.ENTER)
    assert find("text").text == "the will at 1 in 1.", "before the first there is none"
    tab_to("later")
    press(Keys.SPACE)
    assert find("text").text == "the will at 1 in 2."
    tab_to("temperature")
    press(Keys.ARROW_LEFT)
    assert find("text").text == "the will at 0.5 in 2."
    tab_to("text")
    said = " ".join(find("inspector").text.split())
    assert said == "w 0.0 nats, 100 % The likeliest here: e 50 % t 25 % a 13 %"
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert find("inspector").text.startswith("l 1.0 nats, 37 %")
    press(Keys.END)
    assert find("inspector").text.startswith(". 8.0 nats, < 0.1 %")
    press(Keys.ARROW_RIGHT, Keys.HOME, Keys.ARROW_LEFT)
    assert find("inspector").text.startswith("w 0.0 nats")
    press(Keys.ARROW_RIGHT)
    assert browser.find_element(By.CSS_SELECTOR, ".current").text == "i"


def test_the_reader_begins_with_a_run_that_has_written(browser, look):
    find = look(make_report("grid", [a_run("silent"), *RUNS]))
    assert find("text").text == "the will at 1 in 4."
    assert find("run").get_property("value") == "1"


def test_a_wide_figure_is_readable_on_a_phone_and_scrolls_in_its_frame(browser, look):
    wide = SVG.replace(b'"90"', b'"1200"')
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    look(make_report("one", [a_run("one", pictures=[Picture("a", wide), Picture("b", SVG)])]))
    widths = [picture.size["width"] for picture in browser.find_elements(By.CSS_SELECTOR, ".card img")]
    frame = browser.find_element(By.CSS_SELECTOR, ".card .scroll")
    scrolls = browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", frame)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert (widths, scrolls) == ([768, 90 + 24], True), "none is shown larger than it is, but for its margin"


def test_the_reader_is_used_with_a_pointer(browser, look):
    find = look(make_report("grid", RUNS))
    cells = browser.find_elements(By.CSS_SELECTOR, ".cell")
    shades = [browser.execute_script("return getComputedStyle(arguments[0]).backgroundColor", cell) for cell in cells]
    assert len(set(shades[:12])) == 12, "the more surprising, the stronger, up to 6 nats"
    assert len(set(shades[12:])) == 1
    ActionChains(browser).move_to_element(cells[3]).perform()
    assert find("inspector").text.startswith("l 1.5 nats, 22 %")
    cells[1].click()
    assert find("inspector").text.startswith("i 0.5 nats, 61 %")

    def choose(name, option):
        find(name).find_element(By.XPATH, f"option[contains(., '{option}')]").click()

    choose("run", "second")
    assert find("text").get_property("textContent") == "a other↵\nlines"
    assert find("notes").text == "A note."
    choose("prompt", "2: b")
    assert find("text").get_property("textContent") == "b other↵\nlines"
    find("text").send_keys(Keys.ARROW_DOWN)
    assert browser.find_element(By.CSS_SELECTOR, ".current").text == "n"
    find("text").send_keys(Keys.ARROW_UP)
    assert browser.find_element(By.CSS_SELECTOR, ".current").text == "o"
    choose("run", "unread")
    assert find("text").text == "the no model"
    assert not find("inspector").is_displayed()


def test_hostile_text_is_text_in_the_browser_too(browser, look):
    text = a_text(HOSTILE, prompt=HOSTILE, likeliest="<\u202e\n", source=HOSTILE)
    pictures = [Picture(HOSTILE, SVG)]
    run = a_run(HOSTILE, [text], configuration={HOSTILE: HOSTILE}, pictures=pictures, notes=[HOSTILE])
    find = look(make_report(HOSTILE, [run, dataclasses.replace(run, name="b")]))
    marked = HOSTILE
    for character in "\u202e\x00\x1b\u2028":
        marked = marked.replace(character, f"‹U+{ord(character):04X}›")
    assert find("text").get_property("textContent") == 2 * marked
    assert browser.title == browser.find_element(By.TAG_NAME, "h1").get_property("textContent") == marked
    assert find("notes").get_property("textContent") == marked
    assert find("run").find_element(By.TAG_NAME, "option").get_property("textContent") == marked
    assert "‹U+202E› 25 %" in " ".join(find("inspector").text.split())
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2
    figure = browser.find_element(By.CSS_SELECTOR, ".card img")
    assert figure.get_property("naturalWidth") == 90


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_follows_the_system_into_the_dark(width, browser, look):
    long = "x" * 300
    texts = [a_text(long, prompt=long)]
    runs = [a_run(long, texts, pictures=[Picture(long, SVG)]), a_run("b" + long, texts, configuration={long: long})]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    papers = []
    for mode in ("light", "dark"):
        scheme = [{"name": "prefers-color-scheme", "value": mode}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        for page in (make_report(long, runs), make_report("two", RUNS)):
            look(page)
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        papers.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert papers == ["rgb(251, 250, 247)", "rgb(21, 23, 27)"]


def report(*flags):
    importlib.import_module("experiments.report").main(list(map(str, flags)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of two runs of two epochs, the second configured for three."""
    folder = tmp_path_factory.mktemp("grid")
    corpus = folder / "corpus.txt"
    corpus.write_text("the will to power is the will to truth; what is good? the feeling of power.\n" * 14)
    flags = ["--window", "10", "--batch-size", "8", "--epochs", "2", "--sample-every", "1", "--sample-length", "20"]
    chosen = ["--corpus", str(corpus), *flags, "--hidden-size", "4", "--run-dir", str(folder / "one")]
    importlib.import_module("experiments.text_generation").main(chosen)
    settings = json.loads((shutil.copytree(folder / "one", folder / "two") / "config.json").read_text())
    (folder / "two" / "config.json").write_text(json.dumps({**settings, "epochs": 3}))
    return folder


def test_the_command_makes_a_page_of_a_run_and_of_a_grid(trained, tmp_path, capsys):
    report(trained / "one")
    assert capsys.readouterr().out == f"{trained / 'one' / 'report.html'}\n"
    report(trained, trained / "one")
    assert capsys.readouterr().out == f"{trained / 'report.html'}\n"
    said = plain((trained / "report.html").read_text())
    assert "run epochs one 2 two 3" in said, "a run named twice is one"
    shutil.copytree(trained / "one", tmp_path / "runs" / "alone")
    shutil.copytree(trained, tmp_path / "runs" / "grid")
    (tmp_path / "runs" / "link").symlink_to(trained)
    report(tmp_path / "runs")
    assert "run epochs alone 2 grid/one 2 grid/two 3" in plain((tmp_path / "runs" / "report.html").read_text())
    report(trained / "two", "--output", tmp_path / "page.html")
    assert "two" in (tmp_path / "page.html").read_text()
    for flags, message in [
        ([], "no run is named"),
        ([tmp_path / "runs" / "alone" / "best"], "is not a run directory, and holds none"),
        ([tmp_path / "nowhere"], "is not a run directory"),
        ([trained, "--output", tmp_path / "nowhere" / "page.html"], "--output .* in a folder that exists"),
        ([trained, "--output", trained / "corpus.txt"], r"--output .* a file that ends in \.html"),
    ]:
        with pytest.raises(InputError, match=message):
            report(*flags)


def test_a_run_that_cannot_be_read_is_left_out_and_one_without_losses_named(trained, tmp_path, capsys):
    folder = tmp_path / "runs"
    for name in ("one", "two"):
        shutil.copytree(trained / name, folder / name)
    (folder / "one" / "metrics.jsonl").unlink()
    (folder / "two" / "provenance.json").unlink()
    report(folder)
    captured = capsys.readouterr().err
    assert re.search("left out: '.*two/provenance.json' cannot be read", captured)
    said = plain((folder / "report.html").read_text())
    for note in ("two is left out, because its", "one has no losses: its metrics.jsonl has no epoch."):
        assert note in captured
        assert note in said
    assert "1 run one" in said
    with pytest.raises(InputError, match=r"two/provenance\.json' cannot be read"):
        report(folder / "two")


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of a run that a test may damage."""
    return open_run(shutil.copytree(trained / "one", tmp_path / "run"))


def test_what_is_gathered_is_what_the_run_recorded(copy):
    samples = [record for record in read_records(copy.samples) if record["epoch"] == 2]
    copy.figures.mkdir(exist_ok=True)
    append_record(
        copy.figures / "temperature_samples.jsonl", {**samples[0], "temperature": 0.75, "sampler": "windowed"}
    )
    run = gather(copy, "name", characters=10_000, picture_bytes=1000)
    assert not run.notes
    assert [text.temperature for text in run.texts] == [0.2, 0.5, 1.0, 1.2] * 2 + [0.75]
    assert {text.source for text in run.texts} == {"samples.jsonl", "temperature_samples.jsonl"}
    records = read_records(copy.metrics)
    assert [epoch.held_out_loss for epoch in run.epochs] == [records[0]["held_out_loss"], records[2]["held_out_loss"]]
    assert [epoch.training_loss for epoch in run.epochs] == [records[1]["training_loss"], records[3]["training_loss"]]
    loaded = read_run(copy)
    known = frozenset(re.findall(r"[^\W\d_]+", loaded.vocabulary.decode(load_text(copy)[0])))
    assert run.step == loaded.step
    assert run.configuration["corpus"] == run.provenance["corpus"] == "corpus.txt"
    assert run.parameters == sum(array.size for array in jax.tree.leaves(loaded.model))
    for text in run.texts:
        alone = surprisal(
            loaded.model, [loaded.vocabulary.encode(text.prompt)],
            loaded.vocabulary.encode(text.text)[None], sampler=text.sampler, window=10, top=3,
        )  # fmt: skip
        assert text.reading is not None
        np.testing.assert_allclose(text.reading.nats, alone.nats[0], rtol=1e-4, atol=1e-5)
        assert text.reading.likeliest == loaded.vocabulary.decode(alone.likeliest[0].ravel())
        assert text.unknown == unknown_words(text.prompt, text.text, known)
    assert any(text.unknown for text in run.texts)


def test_a_page_says_what_is_left_out(copy, monkeypatch):
    run = gather(copy, "name", characters=10, picture_bytes=1000)
    assert {text.epoch for text in run.texts} == {2}
    assert run.notes == ["4 of 8 texts in samples.jsonl are shown, those of the newest epochs and first prompts."]
    monkeypatch.setattr(gathering, "_LONGEST", 15)
    run = gather(copy, "name", characters=10_000, picture_bytes=1000)
    assert {len(text.text) for text in run.texts} == {15}
    assert run.notes == ["Of prompts only the last, of texts only the first 15 characters are shown."]
    copy.figures.mkdir()
    (copy.figures / "a.svg").write_bytes(SVG[:100])
    (copy.figures / "b.svg").write_bytes(SVG)
    (copy.figures / "c.svg").symlink_to("a.svg")
    run = gather(copy, "name", characters=10_000, picture_bytes=200)
    assert [picture.name for picture in run.pictures] == ["a.svg"]
    assert "b.svg is left out: its 101 bytes exceed the 100 left." in run.notes[1]
    assert "c.svg is left out: it is a link" in run.notes[2]


def test_without_the_model_or_the_corpus_there_is_a_page_that_says_so(copy):
    record = {"epoch": 3, "step": 9, "temperature": 1.0, "prompt": "", "text": f"Ω{LONE}", "sampler": "beam"}
    append_record(copy.samples, record)
    run = gather(copy, "name", characters=10_000, picture_bytes=1000)
    assert [text.reading is None for text in run.texts] == [True] + [False] * 8, "it knows no Ω"
    provenance = json.loads((copy.path / "provenance.json").read_text())
    provenance["corpus"]["sha256"] = "0" * 64
    (copy.path / "provenance.json").write_text(json.dumps(provenance))
    run = gather(copy, "name", characters=10_000, picture_bytes=1000)
    assert "Unknown words are not marked, as the training text is unavailable" in run.notes[0]
    assert "The texts are not shaded, as the model is unavailable" in run.notes[1]
    assert all(text.reading is text.unknown is None for text in run.texts)
    make_report("title", [run]).encode()


def test_odd_records_are_told_in_a_sentence_or_shown_as_they_are(copy):
    provenance = json.loads((copy.path / "provenance.json").read_text())
    provenance |= {"versions": {"jax": [[]], HOSTILE: HOSTILE}, "init_from": ["x"], "device_kind": {}, "commit": 1e300}
    provenance["command"] = "/a/report.py --corpus /b/c.txt runs/d"
    (copy.path / "provenance.json").write_text(json.dumps(provenance))
    run = gather(copy, "name", characters=10_000, picture_bytes=1000)
    assert run.provenance["command"] == "report.py --corpus c.txt runs/d"
    assert run.provenance["jax version"] == run.provenance["device"] == "unreadable"
    make_report("title", [run]).encode()
    append_record(copy.samples, {"epoch": 3, "step": 9, "temperature": 2, "prompt": "", "text": "", "sampler": []})
    odd = {"event": "epoch", "step": 9, "training_loss": 1e300, "windows": 10**30}
    append_record(copy.metrics, {**odd, "epoch": 3, "seconds": 0})
    make_report("title", [gather(copy, "name", characters=10_000, picture_bytes=1000)])
    for changes, words in (
        ({"epoch": 10**300, "seconds": 1}, "line 6 is not a record of a run; restore a copy"),
        ({"epoch": 4, "seconds": -1}, "has an epoch .*; remove its line"),
    ):
        append_record(copy.metrics, {**odd, **changes})
        with pytest.raises(InputError, match=f"metrics.jsonl' {words}"):
            gather(copy, "name", characters=10_000, picture_bytes=1000)
        copy.metrics.write_text("\n".join(copy.metrics.read_text().splitlines()[:-1]) + "\n")
