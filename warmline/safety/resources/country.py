"""Which country's services to show: from settings, language tags and time zones, never from an address or a question."""

import re

ALIASES = {"UK": "GB", "EL": "GR"}

# zoneinfo's zone.tab may be absent (Windows, slim images), so the zones of the directory's countries stand here.
ZONES = {
    "US": "America/New_York America/Detroit America/Chicago America/Menominee America/Denver America/Boise "
    "America/Phoenix America/Los_Angeles America/Anchorage America/Juneau America/Sitka America/Nome America/Adak "
    "Pacific/Honolulu",
    "CA": "America/Toronto America/Montreal America/Ottawa America/Vancouver America/Winnipeg America/Edmonton "
    "America/Calgary America/Halifax America/St_Johns America/Regina America/Moncton America/Whitehorse "
    "America/Yellowknife America/Iqaluit",
    "GB": "Europe/London Europe/Belfast",
    "IE": "Europe/Dublin",
    "NZ": "Pacific/Auckland Pacific/Chatham",
    "IN": "Asia/Kolkata Asia/Calcutta",
    "FR": "Europe/Paris",
    "ES": "Europe/Madrid Atlantic/Canary Africa/Ceuta",
    "PT": "Europe/Lisbon Atlantic/Madeira Atlantic/Azores",
    "BR": "America/Sao_Paulo America/Rio_Branco America/Manaus America/Fortaleza America/Recife America/Bahia "
    "America/Belem America/Cuiaba America/Campo_Grande America/Porto_Velho America/Boa_Vista America/Maceio "
    "America/Araguaina America/Santarem America/Eirunepe America/Noronha",
    "DE": "Europe/Berlin Europe/Busingen",
    "CH": "Europe/Zurich",
    "AT": "Europe/Vienna",
    "NL": "Europe/Amsterdam",
    "BE": "Europe/Brussels",
    "IT": "Europe/Rome",
    "NO": "Europe/Oslo",
    "SE": "Europe/Stockholm",
    "DK": "Europe/Copenhagen",
    "FI": "Europe/Helsinki",
    "PL": "Europe/Warsaw",
    "CZ": "Europe/Prague",
    "HU": "Europe/Budapest",
    "RO": "Europe/Bucharest",
    "GR": "Europe/Athens",
    "LT": "Europe/Vilnius",
    "JP": "Asia/Tokyo",
    "KR": "Asia/Seoul",
    "CN": "Asia/Shanghai Asia/Chongqing Asia/Urumqi",
    "HK": "Asia/Hong_Kong",
    "TW": "Asia/Taipei",
    "SG": "Asia/Singapore",
    "MY": "Asia/Kuala_Lumpur Asia/Kuching",
    "PH": "Asia/Manila",
    "ZA": "Africa/Johannesburg",
    "IL": "Asia/Jerusalem Asia/Tel_Aviv",
    "MX": "America/Mexico_City America/Monterrey America/Merida America/Cancun America/Chihuahua America/Hermosillo "
    "America/Mazatlan America/Tijuana America/Ciudad_Juarez America/Matamoros America/Ojinaga America/Bahia_Banderas",
    "AR": "America/Buenos_Aires",
    "CL": "America/Santiago America/Punta_Arenas America/Coyhaique Pacific/Easter",
    "CO": "America/Bogota",
}
COUNTRY_OF_ZONE = {zone: code for code, zones in ZONES.items() for zone in zones.split()}
COUNTRY_OF_ZONES_UNDER = {
    "America/Indiana/": "US",
    "America/Kentucky/": "US",
    "America/North_Dakota/": "US",
    "US/": "US",
    "Canada/": "CA",
    "Australia/": "AU",
    "Brazil/": "BR",
    "America/Argentina/": "AR",
}


def choose_country(
    setting: str | None = None,
    operator_default: str | None = None,
    accept_language_or_locale: str | None = None,
    time_zone: str | None = None,
) -> str | None:
    """The two-letter code that the first of these gives, in this order, or None.

    The code may be of a country that the directory does not have: its card is the international one, which is better
    than another country's numbers. What cannot be read counts as not given; nothing raises.

    >>> choose_country(None, None, "pt-BR,pt;q=0.9,en-US;q=0.8", "Europe/Lisbon")
    'BR'
    """
    return (
        _code(setting)
        or _code(operator_default)
        or _region(accept_language_or_locale or "")
        or _country_of_zone((time_zone or "").strip())
    )


def _code(text: str | None) -> str | None:
    code = (text or "").strip().upper()
    return ALIASES.get(code, code) if re.fullmatch("[A-Z]{2}", code) else None


def _region(text: str) -> str | None:
    """The region of the best-weighted tag that has one, of an Accept-Language header or a POSIX locale.

    >>> _region("fr;q=0.2, de_AT.UTF-8"), _region("es-419"), _region("en-u-ca-gregory")
    ('AT', None, None)
    """
    tags = []
    for part in text.split(","):
        tag, _, parameter = part.partition(";")
        weight = re.fullmatch(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", parameter)
        tags.append((float(weight[1]) if weight else float(not parameter.strip()), tag))
    for weight, tag in sorted(tags, key=lambda each: -each[0]):  # stable: equal weights stay in order
        for subtag in re.split("[-_]", re.split("[.@]", tag.strip())[0])[1:]:
            if len(subtag) == 1:  # what follows is an extension, not a region
                break
            if weight and (code := _code(subtag)):
                return code
    return None


def _country_of_zone(zone: str) -> str | None:
    under = (code for prefix, code in COUNTRY_OF_ZONES_UNDER.items() if zone.startswith(prefix))
    return COUNTRY_OF_ZONE.get(zone) or next(under, None)


def checked_country(country: str | None) -> str | None:
    """Two letters in upper case. Raises ValueError for anything else."""
    if country is not None and not (len(country) == 2 and country.isascii() and country.isalpha()):
        raise ValueError(f"--country {country!r}: expected two letters, as IE")
    return country and country.upper()
