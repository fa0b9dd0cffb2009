"""The files with which the host of an https deep link names the apps that can claim the link.

Formats: https://developer.apple.com/documentation/bundleresources/applinks/details-swift.dictionary for iOS, and
https://developers.google.com/digital-asset-links/v1/statements for Android. Phones accept only JSON without a redirect.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amo_callback.config.settings import App

IOS_FILE = "/.well-known/apple-app-site-association"
ANDROID_FILE = "/.well-known/assetlinks.json"


def app_link_files(app: App) -> Mapping[str, str]:
    """Return the content of each file for which there are settings, by path."""
    found = {}
    if app.ios_app_ids:
        found[IOS_FILE] = json.dumps(_site_association(app.ios_app_ids, link_paths(app)))
    if app.android_package is not None and app.android_cert_fingerprints:
        found[ANDROID_FILE] = json.dumps(_asset_links(app.android_package, app.android_cert_fingerprints))
    return found


def link_paths(app: App) -> Sequence[str]:
    """Return the different paths of all https deep links."""
    return list(dict.fromkeys(urlsplit(link).path for link in app.https_links))


def host_of(link: str) -> str:
    """Return the host of an https deep link, whose port can only be 443."""
    return urlsplit(link).netloc.lower().removesuffix(":443")


def _site_association(app_ids: Sequence[str], paths: Sequence[str]) -> object:
    return {
        "applinks": {"details": [{"appIDs": [*app_ids], "components": [{"/": path} for path in paths]}]},
        # `ASWebAuthenticationSession` requires it for https links: https://developer.apple.com/forums/thread/805416
        "webcredentials": {"apps": [*app_ids]},
    }


def _asset_links(package: str, fingerprints: Sequence[str]) -> object:
    target = {"namespace": "android_app", "package_name": package, "sha256_cert_fingerprints": [*fingerprints]}
    return [{"relation": ["delegate_permission/common.handle_all_urls"], "target": target}]
