// The card that the conversation called for: it stands before the messages, may be folded, and does not go away.

import { drawn, firstLink, loadCard, moved } from "./card.js";
import { el } from "./dom.js";
import { tab } from "./stored.js";

export class Pinned {
  /** `place`: the live region. `act(action)`: told of `with_me`, `hide` and `other`, which the server may count. */
  constructor(place, act) {
    this.place = place;
    this.act = act;
    this.card = null; // as the server gave it
    this.shown = null; // the same, or moved to another country
    this.about = "self";
    this.hadCard = false; // with the turn before
  }

  /** A card of this tab from before a reload; it was announced then. */
  restore() {
    const kept = tab.get("card");
    if (kept === null) return;
    try {
      this.card = JSON.parse(kept);
      this.place.setAttribute("aria-live", "off");
      this.draw(this.card, this.isFolded);
    } catch {
      tab.set("card", null);
    }
  }

  /** What came with a turn: a card, or none, which takes nothing away. */
  arrive(card) {
    const before = this.hadCard ? this.card : null;
    this.hadCard = card !== null;
    if (card === null || JSON.stringify(card) === JSON.stringify(before)) return;
    const isNew = before === null || (isUrgent(card) && !isUrgent(before));
    this.card = card;
    tab.set("card", JSON.stringify(card));
    this.place.setAttribute("aria-live", isNew ? "assertive" : "off"); // announced once
    this.draw(card, !isNew && this.isFolded);
    if (isNew) this.place.scrollTop = 0;
  }

  /** The same card for another country; the keyboard stays on it. */
  async move(country) {
    if (this.card === null) return;
    const fresh = await loadCard(country, this.about);
    this.place.setAttribute("aria-live", "off"); // who asked for it is there already
    this.draw(moved(this.card, fresh), false);
  }

  get isFolded() {
    return tab.get("card-folded") !== null;
  }

  focus() {
    this.place.querySelector(".card-title, .card-unfold")?.focus();
  }

  draw(card, folded) {
    this.shown = card;
    this.place.replaceChildren(folded ? this.folded(card) : drawn(card, (id, value) => this.pressed(id, value)));
    this.place.classList.toggle("is-folded", folded);
    this.place.setAttribute("aria-label", card.title);
    tab.set("card-folded", folded ? "yes" : null);
  }

  folded(card) {
    const show = el(
      "button",
      { type: "button", class: "card-unfold", "aria-expanded": "false", onclick: () => this.fold(false) },
      card.title,
    );
    return el("div", { class: "card folded", lang: card.language }, show, firstLink(card));
  }

  fold(folded) {
    this.place.setAttribute("aria-live", "off");
    this.draw(this.shown, folded);
    this.focus();
  }

  async pressed(id, value) {
    if (id === "hide") this.fold(true);
    if (id === "country") {
      tab.set("country", value);
      await this.move(value);
      this.focus();
    } else if (id === "other" || id === "self") {
      this.about = id;
      const fresh = await loadCard(this.shown.country, id);
      this.place.setAttribute("aria-live", "off");
      this.draw({ ...moved(this.card, fresh), actions: fresh.actions }, false);
      this.focus();
    }
    this.act(id);
  }
}

const isUrgent = (card) => card.sections[0] === "emergency";
