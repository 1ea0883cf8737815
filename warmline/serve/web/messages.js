// What the conversation looks like: messages, the companion's words as they come, and lines of the app.

import { el } from "./dom.js";

export class Messages {
  /** `log`: the live list; `frame`: what scrolls. */
  constructor(log, frame) {
    this.log = log;
    this.frame = frame;
    this.first = [...log.childNodes];
    this.atEnd = true;
    frame.addEventListener("scroll", () => (this.atEnd = this.isAtEnd()), { passive: true });
    new ResizeObserver(() => this.atEnd && this.toEnd()).observe(frame); // the card takes room, so does a keyboard
  }

  clear() {
    this.log.replaceChildren(...this.first);
  }

  user(text) {
    this.add(el("article", { class: "said by-user" }, el("h2", { class: "who" }, "You"), el("p", { class: "text" }, text)));
    this.toEnd();
  }

  /** A reply that is still to come: `append` adds words, `ended` puts away what says that it is being written. */
  reply(text = "") {
    const words = el("p", { class: "text" });
    const waiting = el("p", { class: "waiting" }, el("span", { class: "unseen" }, "warmline is writing"), dots());
    const name = el("h2", { class: "who" }, "warmline ", el("span", { class: "ai" }, "AI"));
    const article = el("article", { class: "said by-companion" }, name, words, waiting);
    this.add(article);
    const append = (piece) => this.following(() => words.append(el("span", { class: "piece" }, piece)));
    if (text) append(text);
    return {
      append,
      ended: () => waiting.remove(),
      removed: () => article.remove(),
      fromApp: () => {
        article.classList.add("by-app");
        name.replaceChildren("The app");
      },
    };
  }

  /** A calm line of the app's own, with buttons `{label: f}`; gives what takes it away. */
  app(text, buttons = {}) {
    const presses = Object.entries(buttons).map(([label, press]) =>
      el("button", { type: "button", class: "quiet", onclick: () => press(line) }, label),
    );
    const line = el("div", { class: "app-note" }, el("p", {}, text), presses.length ? el("div", { class: "row" }, presses) : null);
    this.add(line);
    return line;
  }

  add(node) {
    this.following(() => this.log.append(node));
  }

  /** Keep the end in sight where it was in sight; who reads further up is left there. */
  following(change) {
    const { atEnd } = this;
    change();
    if (atEnd) this.toEnd();
  }

  isAtEnd() {
    return this.end() - this.frame.scrollTop < 80;
  }

  /** Where the frame is scrolled to at the end: no further than to the beginning of the newest reply. */
  end() {
    const { scrollHeight, clientHeight } = this.frame;
    const newest = [...this.log.querySelectorAll(".said")].at(-1);
    const begins = newest?.classList.contains("by-companion") ? newest.offsetTop - this.log.offsetTop - 12 : Infinity;
    return Math.min(scrollHeight - clientHeight, begins);
  }

  toEnd() {
    this.atEnd = true;
    this.frame.scrollTop = this.end();
  }
}

function dots() {
  return el("span", { class: "dots", "aria-hidden": "true" }, el("i"), el("i"), el("i"));
}
