// The card with people who can help: drawn from the server's object, which is drawn from checked data alone.

import { el, safeHref } from "./dom.js";

/** The countries that the directory has; names come from the browser. */
export const COUNTRIES = (
  "AR AT AU BE BR CA CH CL CN CO CZ DE DK ES FI FR GB GR HK HU IE IL IN IT JP KR LT MX MY NL NO NZ PH PL PT RO SE SG " +
  "TW US ZA"
).split(" ");

/** What is shown when neither the server nor the offline copy can be had: no number that is not one everywhere. */
export const FALLBACK = {
  country: null,
  country_name: "",
  language: "en",
  title: "Support from people, shown by the warmline app",
  showing: "No country is chosen, or there is no list for it. International services are shown.",
  notes: ["The list of local services could not be read. General ones are shown."],
  sections: ["services", "international", "provisional", "emergency"],
  headings: {
    services: "People you can reach",
    international: "Find a service in your country and language",
    provisional: "More numbers",
    emergency: "Emergency",
  },
  emergency: [],
  emergency_text:
    "If a life is in danger now, call your local emergency number. 112 works from mobiles in many countries.",
  safety_lines: [],
  services: [],
  international: [
    { name: "Find A Helpline", url: "https://findahelpline.com" },
    { name: "IASP crisis centres", url: "https://www.iasp.info/crisis-centres-helplines/" },
    { name: "Befrienders Worldwide", url: "https://befrienders.org" },
  ],
  provisional: [],
  actions: [
    { id: "country", label: "Change country" },
    { id: "hide", label: "Hide" },
    { id: "why", label: "Why am I seeing this?" },
  ],
  why: "You can open this card at any time.",
  footer: [
    "You can open this card at any time.",
    "This card comes from the warmline app, not from the companion.",
    "warmline has not contacted anyone and cannot.",
    "warmline is not a crisis or medical service.",
    "This card has not been reviewed by a clinician.",
  ],
  degraded: ["page"],
};

/** The card of a country from the server, or from the service worker's copy, or the one above; never throws. */
export async function loadCard(country, about = "self") {
  const query = new URLSearchParams();
  if (country) query.set("country", country);
  if (about === "other") query.set("about", about);
  try {
    const response = await fetch(`/resources${query.size ? `?${query}` : ""}`, { credentials: "omit" });
    const card = await response.json();
    if (response.ok && Array.isArray(card.sections) && Array.isArray(card.footer)) return card;
  } catch {
    // the fallback is for this
  }
  return FALLBACK;
}

/** `card` for another country, with what belongs to the moment: the order of its parts, its lines, its reason. */
export function moved(card, fresh) {
  const { sections, safety_lines, why } = card;
  return { ...fresh, sections, safety_lines, why, footer: [why, ...fresh.footer.slice(1)] };
}

/**
 * The card as an element. `act(id, value)` is called for its actions; of `country` with two letters or "".
 * What a level means stands nowhere on it.
 */
export function drawn(card, act, { heading = "h2" } = {}) {
  const why = el("p", { class: "card-why", hidden: true, tabindex: "-1" }, card.why);
  const country = countryChoice(card, (value) => act("country", value));
  const parts = card.sections.map((name) => SECTIONS[name]?.(card)).filter(Boolean);
  const press = {
    why: () => reveal(why),
    country: () => reveal(country, country.querySelector("select")),
  };
  const buttons = card.actions.map(({ id, label }) => {
    const opens = id in press;
    const button = el("button", { type: "button", class: "card-action", "data-action": id }, label);
    if (opens) button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      if (opens) button.setAttribute("aria-expanded", String(press[id]()));
      else act(id);
    });
    return button;
  });
  const hide = buttons.find((each) => each.dataset.action === "hide"); // at hand without scrolling
  return el(
    "article",
    { class: "card", lang: card.language },
    el("div", { class: "card-head" }, el(heading, { class: "card-title", tabindex: "-1" }, card.title), hide),
    el("p", { class: "card-showing" }, [card.showing, ...card.notes].join(" ")),
    el("div", { class: "card-parts" }, parts),
    el("div", { class: "card-actions" }, buttons.filter((each) => each !== hide)),
    why,
    country,
    el("p", { class: "card-foot" }, card.footer.filter((line) => line !== card.why).join(" ")),
  );
}

/** The first way to reach somebody, for the folded card: a channel of the first service, or an emergency number. */
export function firstLink(card) {
  const channel = card.services[0]?.channels.find((each) => safeHref(each.uri));
  if (channel) return link(channel.uri, channel.text, "card-call");
  const number = card.emergency[0];
  return number && safeHref(number.uri) ? link(number.uri, number.number, "card-call") : null;
}

const SECTIONS = {
  emergency(card) {
    const numbers = card.emergency.filter((each) => safeHref(each.uri));
    const calls = numbers.map((each) => link(each.uri, each.number, "card-call urgent"));
    return section(card, "emergency", [
      el("div", { class: "urgent-line" }, el("p", {}, card.emergency_text), calls),
      card.safety_lines.map((line) => el("p", {}, line)),
    ]);
  },
  services: (card) => (card.services.length ? section(card, "services", card.services.map(service)) : null),
  provisional: (card) => (card.provisional.length ? section(card, "provisional", card.provisional.map(service)) : null),
  international(card) {
    const links = card.international.map(({ name, url }) => el("li", {}, link(url, name, "card-link")));
    return links.length ? section(card, "international", [el("ul", { class: "card-links" }, links)]) : null;
  },
};

function section(card, name, children) {
  return el("section", { class: `card-part ${name}` }, el("h3", {}, card.headings[name]), children);
}

function service(entry) {
  const channels = entry.channels.map((each) =>
    safeHref(each.uri) ? link(each.uri, each.text, "card-call") : el("span", { class: "card-said" }, each.text),
  );
  return el(
    "div",
    { class: `service ${entry.status === "provisional" ? "unchecked" : ""}` },
    el("p", { class: "service-name" }, entry.title),
    el("div", { class: "channels" }, channels),
    el("p", { class: "service-details" }, entry.details),
  );
}

function link(uri, text, kind) {
  const away = uri.startsWith("https:") ? { target: "_blank", rel: "noopener noreferrer" } : {};
  return el("a", { class: kind, href: safeHref(uri), ...away }, text);
}

function countryChoice(card, choose) {
  const label = card.actions.find((each) => each.id === "country")?.label ?? "Country";
  const select = el("select", { onchange: () => choose(select.value) }, countryOptions(card.country ?? "", card.language));
  return el("label", { class: "card-country", hidden: true }, `${label} `, select);
}

export function countryOptions(chosen, language = "en") {
  const names = new Intl.DisplayNames([language, "en"], { type: "region" });
  const named = COUNTRIES.map((code) => [names.of(code), code]).sort(([one], [other]) => one.localeCompare(other));
  const options = [["Not chosen", ""], ...named];
  return options.map(([name, code]) => el("option", { value: code, selected: code === chosen }, name));
}

/** Show or hide a part; where it is shown, the keyboard goes there. Gives whether it is shown. */
function reveal(part, focused = part) {
  part.hidden = !part.hidden;
  if (!part.hidden) focused.focus();
  return !part.hidden;
}
