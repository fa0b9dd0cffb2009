"""`User-Agent` headers of real browsers."""

from amo_callback.web.pages import Kind

_IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
_IPAD = "Mozilla/5.0 (iPad; CPU OS 17_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
_MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)"
_PIXEL = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko)"
_WEBVIEW = (
    "Mozilla/5.0 (Linux; Android 14; SM-S911B Build/UP1A.231005.007; wv) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Version/4.0 Chrome/126.0.6478.122 Mobile Safari/537.36"
)
_XIAOMI = (
    "Mozilla/5.0 (Linux; U; Android 13; ru-ru; 22101316G Build/TP1A) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Version/4.0 Chrome/112.0.5615.136 Mobile Safari/537.36 XiaoMi/MiuiBrowser/14.4.0-g"
)
_WINDOWS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
_LINUX = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
_CHROMEBOOK = (
    "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
_WINDOWS_PHONE = (
    "Mozilla/5.0 (Mobile; Windows Phone 8.1; Android 4.0; ARM; Trident/7.0; rv:11.0; IEMobile/11.0; NOKIA; "
    "Lumia 520) like iPhone OS 7_0_3 Mac OS X AppleWebKit/537 (KHTML, like Gecko) Mobile Safari/537"
)

AGENTS = {
    "safari_or_its_sheet": (Kind.IOS, f"{_IPHONE} Version/18.5 Mobile/15E148 Safari/604.1"),
    "safari_ipad_mobile_site": (Kind.IOS, f"{_IPAD} Version/17.7 Mobile/15E148 Safari/604.1"),
    "chrome_ios": (Kind.IOS, f"{_IPHONE} CriOS/126.0.6478.153 Mobile/15E148 Safari/604.1"),
    "firefox_ios": (Kind.IOS, f"{_IPHONE} FxiOS/127.0 Mobile/15E148 Safari/605.1.15"),
    "chrome_android_or_its_tab": (Kind.ANDROID, f"{_PIXEL} Chrome/126.0.0.0 Mobile Safari/537.36"),
    "samsung": (Kind.ANDROID, f"{_PIXEL} SamsungBrowser/25.0 Chrome/121.0.0.0 Mobile Safari/537.36"),
    "firefox_android": (Kind.ANDROID, "Mozilla/5.0 (Android 14; Mobile; rv:127.0) Gecko/127.0 Firefox/127.0"),
    "opera_android": (Kind.ANDROID, f"{_PIXEL} Chrome/124.0.0.0 Mobile Safari/537.36 OPR/82.0.0.0"),
    "xiaomi": (Kind.ANDROID, _XIAOMI),
    "webview_android": (Kind.IN_APP, _WEBVIEW),
    "webview_ios": (Kind.IN_APP, f"{_IPHONE} Mobile/15E148"),
    "facebook_ios": (
        Kind.IN_APP,
        f"{_IPHONE} Mobile/22F76 [FBAN/FBIOS;FBAV/516.0.0.38.98;FBBV/745869421;FBDV/iPhone15,2;FBMD/iPhone;FBLC/uk_UA]",
    ),
    "facebook_android": (Kind.IN_APP, f"{_WEBVIEW} [FB_IAB/FB4A;FBAV/470.0.0.42.78;]"),
    "messenger_with_safari": (Kind.IN_APP, f"{_IPHONE} Mobile/22F76 Safari/604.1 [FBAN/MessengerForiOS;FBAV/460.0]"),
    "instagram_ios": (Kind.IN_APP, f"{_IPHONE} Mobile/22F76 Instagram 384.0.0.24.87 (iPhone15,2; iOS 18_5; uk_UA)"),
    "instagram_android": (Kind.IN_APP, f"{_WEBVIEW} Instagram 335.0.0.39.93 Android (34/14; 480dpi; samsung)"),
    "telegram_android": (
        Kind.IN_APP,
        f"{_PIXEL} Chrome/126.0.0.0 Mobile Safari/537.36 Telegram-Android/11.3.3 (Samsung SM-S911B; Android 14)",
    ),
    "line_ios": (Kind.IN_APP, f"{_IPHONE} Mobile/15E148 Safari/604.1 Line/14.9.0"),
    "wechat": (Kind.IN_APP, f"{_IPHONE} Mobile/15E148 MicroMessenger/8.0.49(0x18003137) NetType/WIFI Language/en"),
    "tiktok": (Kind.IN_APP, f"{_IPHONE} Mobile/22F76 musical_ly_35.1.0 JsSdk/2.0 NetType/WIFI BytedanceWebview/d8"),
    "vk_android": (Kind.IN_APP, f"{_PIXEL} Chrome/126.0.0.0 Mobile Safari/537.36 VKAndroidApp/8.90-22000"),
    "whatsapp": (Kind.IN_APP, f"{_IPHONE} Mobile/15E148 WhatsApp/24.13.80 Safari/604.1"),
    "snapchat": (Kind.IN_APP, f"{_IPHONE} Version/18.5 Mobile/15E148 Safari/604.1 Snapchat/13.0.0.40 (like Safari)"),
    "twitter": (Kind.IN_APP, f"{_IPHONE} Mobile/15E148 Twitter for iPhone/10.47"),
    "linkedin": (Kind.IN_APP, f"{_IPHONE} Mobile/15E148 [LinkedInApp]/9.30.1452"),
    "safari_mac_or_ipad": (Kind.MAC, f"{_MAC} Version/18.5 Safari/605.1.15"),
    "chrome_mac_or_ipad": (Kind.MAC, f"{_MAC} CriOS/126 Version/11.1.1 Safari/605.1.15"),
    "webview_ipad_or_mac": (Kind.OTHER, _MAC),
    "firefox_mac": (Kind.OTHER, "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:127.0) Gecko/20100101 Firefox/127.0"),
    "chrome_windows": (Kind.OTHER, _WINDOWS),
    "chromebook": (Kind.OTHER, _CHROMEBOOK),
    "android_tablet_or_linux": (Kind.LINUX, f"{_LINUX} Chrome/126.0.0.0 Safari/537.36"),
    "telegram_desktop_site": (Kind.IN_APP, f"{_LINUX} Chrome/126.0.0.0 Safari/537.36 Telegram-Android/11.3.3"),
    "web_kit_host_linux": (Kind.OTHER, _LINUX),
    "firefox_linux": (Kind.LINUX, "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0"),
    "windows_phone": (Kind.OTHER, _WINDOWS_PHONE),
    "android_http_client": (Kind.OTHER, "Dalvik/2.1.0 (Linux; U; Android 14; SM-S911B Build/UP1A.231005.007)"),
    "curl": (Kind.OTHER, "curl/8.5.0"),
    "empty": (Kind.OTHER, ""),
    "too_long": (Kind.OTHER, f"{_IPHONE} Version/18.5 Mobile/15E148 Safari/604.1 " + "x" * 2000),
}
"""The expected kind and the `User-Agent` of each browser."""

SAFARI = AGENTS["safari_or_its_sheet"][1]
CHROME = AGENTS["chrome_android_or_its_tab"][1]
INSTAGRAM = AGENTS["instagram_ios"][1]
DESKTOP = AGENTS["chrome_windows"][1]
