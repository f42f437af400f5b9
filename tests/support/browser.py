"""A real browser without a window, and no network: Debian's Chromium, driven through chromedriver."""

import json
import shutil

CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
_FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-dev-shm-usage',
    # A microphone that beeps, and nobody to ask for it.
    '--use-fake-device-for-media-stream',
    '--use-fake-ui-for-media-stream',
)


def open_browser(profile, downloads, *, width=1280, height=1000):
    """A selenium driver with a new profile; what is downloaded lands in a folder, without a question."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f'--user-data-dir={profile}', f'--window-size={width},{height}'):
        options.add_argument(flag)
    options.add_experimental_option('prefs', {'download.default_directory': str(downloads)})
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    return webdriver.Chrome(options=options, service=Service(DRIVER))


def requested_urls(driver) -> list[str]:
    """What the page has asked the network for since the last call."""
    messages = [json.loads(entry['message'])['message'] for entry in driver.get_log('performance')]
    return [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent']
