"""The web page in a real browser: what a user does, and hears."""

import itertools
import time

import numpy as np
import pytest
import soundfile
from support.browser import CHROMIUM, DRIVER, open_browser, requested_urls
from support.served_page import served
from support.small_separator import save_small

import audiosep_jax as asj

pytest.importorskip('gradio', reason='the extra demo is not installed')
pytest.importorskip('selenium', reason='selenium is not installed')
if not (CHROMIUM and DRIVER):
    pytest.skip('no Chromium here: apt-get install chromium chromium-driver', allow_module_level=True)

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

RATE = 16000
STEP = 2**-23  # of the 24 bits of what is downloaded


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """With an example beside it."""
    folder = save_small(tmp_path_factory.mktemp('checkpoint'))
    (folder / 'examples').mkdir()
    sound = np.random.default_rng(1).integers(-(2**19), 2**19, 6000) / 2**23
    soundfile.write(folder / 'examples' / 'harbour.wav', sound, RATE, subtype='PCM_24')
    (folder / 'examples' / 'harbour.txt').write_text('a ship\ngulls\n')
    return folder


@pytest.fixture(scope='module')
def address(checkpoint, tmp_path_factory):
    with served(checkpoint, tmp_path_factory.mktemp('home')) as address:
        yield address


@pytest.fixture(scope='module')
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp('downloads')


@pytest.fixture(scope='module')
def browser(tmp_path_factory, downloads):
    driver = open_browser(tmp_path_factory.mktemp('profile'), downloads)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    """The page, fresh."""
    browser.get(address)
    found(browser, '#separate')
    return browser


def found(page, css):
    """The first element of the selector that is shown, waited for."""
    return WebDriverWait(page, 300).until(
        lambda p: next((e for e in p.find_elements(By.CSS_SELECTOR, css) if e.is_displayed()), None)
    )


def upload(page, path):
    page.find_element(By.CSS_SELECTOR, '#recording input[type=file]').send_keys(str(path))
    found(page, '#recording [data-testid^=waveform]')


def separate(page, queries, *, unwanted=''):
    for box, text in (('queries', queries), ('unwanted', unwanted)):
        field = page.find_element(By.CSS_SELECTOR, f'#{box} textarea')
        field.send_keys(Keys.CONTROL, 'a')
        field.send_keys(Keys.DELETE, text)  # `clear` of the driver is no event of a user's
    page.find_element(By.CSS_SELECTOR, '#separate').click()


def downloaded(page, element, downloads):
    """float32 [channels, T] and the name of what the element's download button gives."""
    before = set(downloads.iterdir())
    found(page, f'#{element} .download-link').click()
    for _ in range(3000):
        new = [path for path in set(downloads.iterdir()) - before if path.suffix == '.wav']
        if new:
            sound, rate = soundfile.read(new[0], dtype='float32', always_2d=True)
            assert rate == RATE
            return sound.T, new[0].name
        time.sleep(0.1)
    raise AssertionError('nothing was downloaded')


def recording(folder, name='street.wav'):
    sound = np.random.default_rng(0).integers(-(2**19), 2**19, (8000, 2)) / 2**23
    soundfile.write(folder / name, sound, RATE, subtype='PCM_24')
    return folder / name


def test_uploaded_described_separated_downloaded(page, checkpoint, downloads, tmp_path):
    upload(page, recording(tmp_path, 'Straße & "Hund".wav'))
    separate(page, 'a dog barking\nrain', unwanted='wind')
    got = [downloaded(page, element, downloads) for element in ('target-0', 'target-1', 'residual')]
    mixture, rate = asj.read_audio(tmp_path / 'Straße & "Hund".wav')
    queries = [asj.Query.text(text).without('wind') for text in ('a dog barking', 'rain')]
    expected = asj.load(checkpoint).separate(mixture, queries, sample_rate=rate)
    for (sound, _), target in zip(got, [*expected.targets, expected.residual], strict=True):
        np.testing.assert_allclose(sound, target, atol=2 * STEP)
    assert [name.rpartition('__')[2] for _, name in got] == ['a_dog_barking.wav', 'rain.wav', 'residual.wav']
    picture = found(page, '#picture img')
    WebDriverWait(page, 300).until(lambda p: p.execute_script('return arguments[0].naturalWidth', picture) > 500)
    assert len(page.find_elements(By.CSS_SELECTOR, '#target-2')) == 0

    # And the browser can play it.
    player = page.find_element(By.CSS_SELECTOR, '#target-0 .download-link').get_attribute('href')
    script = """
        const done = arguments[1];
        fetch(arguments[0]).then(r => r.arrayBuffer())
            .then(b => new AudioContext({sampleRate: 16000}).decodeAudioData(b))
            .then(a => done([a.numberOfChannels, a.length]), e => done(String(e)));
    """
    assert page.execute_async_script(script, player) == [2, 8000]


def test_strength_is_set_by_the_slider(page, downloads, tmp_path):
    path = recording(tmp_path)
    upload(page, path)
    number = page.find_element(By.CSS_SELECTOR, '#strength input[type=number]')
    number.send_keys(Keys.CONTROL, 'a')
    number.send_keys('0', Keys.TAB)
    separate(page, 'rain')
    sound, _ = downloaded(page, 'target-0', downloads)
    np.testing.assert_allclose(sound, asj.read_audio(path)[0], atol=STEP)


def test_an_example_is_one_click(page, checkpoint, downloads):
    found(page, 'button.gallery-item, .gallery button, [data-testid=dataset] button').click()
    found(page, '#recording [data-testid^=waveform]')
    queries = page.find_element(By.CSS_SELECTOR, '#queries textarea')
    WebDriverWait(page, 300).until(lambda _: queries.get_attribute('value').split('\n')[:2] == ['a ship', 'gulls'])
    page.find_element(By.CSS_SELECTOR, '#separate').click()
    sound, name = downloaded(page, 'target-1', downloads)
    mixture, rate = asj.read_audio(checkpoint / 'examples' / 'harbour.wav')
    expected = asj.load(checkpoint).separate(mixture, ['a ship', 'gulls'], sample_rate=rate)
    np.testing.assert_allclose(sound, expected.targets[1], atol=2 * STEP)
    assert name == 'harbour__gulls.wav'


def test_a_microphone_s_recording_is_separated(page):
    found(page, '#recording [aria-label="Record audio"], #recording [aria-label*=icrophone]').click()
    found(page, '#recording .record-button').click()
    time.sleep(1)
    found(page, '#recording .stop-button').click()
    found(page, '#recording [data-testid^=waveform]')
    separate(page, 'a beep')
    assert found(page, '#target-0 .download-link').get_attribute('download').endswith('__a_beep.wav')


def test_mistakes_are_said_in_the_page_and_can_be_mended(page, tmp_path):
    separate(page, 'rain')
    assert 'no recording yet' in found(page, '#message [role=alert]').text
    (tmp_path / 'notes.wav').write_text('this is no sound')
    page.find_element(By.CSS_SELECTOR, '#recording input[type=file]').send_keys(str(tmp_path / 'notes.wav'))
    wait_for_message(page, 'notes.wav: damaged, cut short or not an audio file')
    page.find_element(By.CSS_SELECTOR, '#recording [aria-label=Clear]').click()
    upload(page, recording(tmp_path))
    separate(page, '')
    wait_for_message(page, 'describe a sound')
    separate(page, 'rain')
    found(page, '#target-0 .download-link')
    assert page.find_elements(By.CSS_SELECTOR, '#message [role=alert]') == []


def wait_for_message(page, text):
    """Presses the button until the page says it: an upload may be on its way."""

    def says(p):
        p.find_element(By.CSS_SELECTOR, '#separate').click()
        time.sleep(0.5)
        return any(text in e.text for e in p.find_elements(By.CSS_SELECTOR, '#message [role=alert]'))

    WebDriverWait(page, 300).until(says)


def test_nothing_is_loaded_from_elsewhere(page, address, tmp_path):
    requested_urls(page)  # of the tests before
    page.refresh()
    found(page, '#separate')
    upload(page, recording(tmp_path))
    separate(page, 'rain')
    found(page, '#picture img')
    urls = [url for url in requested_urls(page) if not url.startswith(('chrome:', 'data:', f'blob:{address}'))]
    assert len(urls) > 10
    assert [url for url in urls if not url.startswith(f'{address}/')] == []


@pytest.mark.parametrize('width', [1280, 500])
def test_it_fits_wide_and_narrow_windows(page, width, tmp_path):
    page.set_window_size(width, 900)
    upload(page, recording(tmp_path))
    separate(page, 'a very long description of a sound that nobody will ever ' * 3)
    found(page, '#picture img')
    assert page.execute_script('return document.documentElement.scrollWidth <= window.innerWidth')
    boxes = [found(page, css).rect for css in ('#recording', '#queries', '#target-0', '#residual')]
    assert all(box['x'] >= 0 and box['x'] + box['width'] <= width for box in boxes)
    beside = boxes[2]['x'] > boxes[0]['x'] + boxes[0]['width']
    assert beside == (width == 1280)
    assert all(a['y'] <= b['y'] for a, b in itertools.pairwise(boxes[:2]))


@pytest.mark.slow
@pytest.mark.nightly
def test_the_token_is_a_password_to_the_browser(browser, checkpoint, downloads, tmp_path):
    """Scripts, uploads, streams and downloads of the page carry it, too."""
    (home := tmp_path / 'home').mkdir()
    for earlier in downloads.iterdir():  # the browser would number a second file of the same name
        earlier.unlink()
    with served(checkpoint, home, AUDIOSEP_JAX_TOKEN='secret') as address:
        browser.get(address)
        assert not browser.find_elements(By.CSS_SELECTOR, '#separate')
        browser.get(address.replace('http://', 'http://me:secret@'))  # as if it were typed into the browser's question
        browser.get(address)
        found(browser, '#separate')
        upload(browser, recording(tmp_path))
        separate(browser, 'rain')
        sound, name = downloaded(browser, 'target-0', downloads)
        assert (len(sound), name) == (2, 'street__rain.wav')
