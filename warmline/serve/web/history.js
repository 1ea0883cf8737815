// Kept conversations, for those who want them: off by default, encrypted by the server with a key that only this
// browser holds, which travels as a header of those requests and is never part of an address.

import { Failure, json, request, sent } from "./api.js";
import { byId, el, opened } from "./dom.js";
import { device, randomText } from "./stored.js";

const KEY = "history-key";
const KEY_BYTES = 32;

/** What goes with requests while history is on: the key, or nothing. */
export function historyHeaders() {
  const key = device.get(KEY);
  return key === null ? {} : { "Warmline-Key": key };
}

export const isKeeping = () => device.get(KEY) !== null;

/** Keep `turns` under the conversation's name; whether that worked. Nothing happens while history is off. */
export async function keep(conversation, turns) {
  if (!isKeeping() || !turns.length) return true;
  try {
    await sent(path(conversation), { method: "PUT", body: { turns }, headers: historyHeaders() });
    return true;
  } catch {
    return false;
  }
}

/** The turns that were kept of a conversation; none where there are none or history is off. */
export async function kept(conversation) {
  if (!isKeeping()) return [];
  try {
    const found = await json(path(conversation), { headers: historyHeaders() });
    return found.turns.filter((turn) => ["user", "assistant"].includes(turn.role) && typeof turn.content === "string");
  } catch {
    return [];
  }
}

/** The part of the settings. `open(id, turns)`: go on with a kept conversation; `fresh()`: begin anew. */
export class HistorySettings {
  constructor(chat, { open, fresh }) {
    this.chat = chat;
    this.open = open;
    this.fresh = fresh;
    byId("keep").addEventListener("change", () => this.switched());
    byId("export").addEventListener("click", () => this.exported());
    byId("forget-all").addEventListener("click", () => this.forgetAll());
  }

  /** Whether the server keeps conversations at all, and which; called when the settings open. */
  async refresh() {
    byId("keep").checked = isKeeping();
    this.say("");
    try {
      const key = isKeeping() ? device.get(KEY) : randomText(KEY_BYTES); // a key of nobody's, to learn whether it is on
      const list = await json("/v1/history", { headers: { "Warmline-Key": key } });
      this.available(true);
      this.list(isKeeping() ? conversationsOf(list) : []);
    } catch (failure) {
      const isOff = failure instanceof Failure && failure.status === 404;
      this.available(!isOff || isKeeping());
      this.list([]);
      if (!isOff) this.say(`Kept conversations cannot be read now. ${failure.message}`);
    }
  }

  available(isOn) {
    byId("history-off-here").hidden = isOn;
    byId("history-controls").hidden = !isOn;
  }

  list(conversations) {
    const row = ({ id, date }) =>
      el(
        "li",
        {},
        el("span", { class: "kept-date" }, id === this.chat.conversation ? `${date} (this one)` : date),
        el("button", { type: "button", class: "quiet", onclick: () => this.opened(id) }, "Open"),
        el("button", { type: "button", class: "quiet danger", "aria-label": `Forget ${date}`, onclick: () => this.forget(id, date) }, "Forget"),
      );
    byId("kept").replaceChildren(...conversations.map(row));
    byId("history-actions").hidden = !isKeeping();
  }

  async switched() {
    const box = byId("keep");
    if (!box.checked) {
      box.checked = !(await this.forgetAll());
      return;
    }
    device.set(KEY, randomText(KEY_BYTES));
    if (await keep(this.chat.conversation, this.chat.turns)) {
      await this.refresh();
      this.say("From now on this conversation is kept.");
    } else {
      device.set(KEY, null);
      box.checked = false;
      this.say("The server could not keep it. Nothing was stored.");
    }
  }

  async opened(id) {
    const turns = await kept(id);
    if (turns.length) this.open(id, turns);
    else this.say("That conversation could not be opened.");
  }

  async exported() {
    try {
      const response = await request("/v1/export", { headers: historyHeaders() });
      const url = URL.createObjectURL(await response.blob());
      el("a", { href: url, download: `warmline-${new Date().toISOString().slice(0, 10)}.json` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      this.say("Everything that is kept was written to a file. It is not encrypted.");
    } catch (failure) {
      this.say(`The export did not work. ${failure.message}`);
    }
  }

  async forget(id, date) {
    if (!(await sure(`The conversation of ${date} cannot be read again by anyone.`))) return;
    if (await this.deleted(path(id))) {
      if (id === this.chat.conversation) this.fresh(); // or the next message would keep it anew
      await this.refresh();
      this.say("Forgotten.");
      byId("settings").querySelector("[data-closes]").focus();
    }
  }

  /** Everything, and the key; whether it was done. */
  async forgetAll() {
    if (!(await sure("All kept conversations and the key are destroyed. Nobody can read them again."))) return false;
    if (!(await this.deleted("/v1/history"))) return false;
    device.set(KEY, null);
    await this.refresh();
    this.say("Everything is forgotten, and the key is gone.");
    return true;
  }

  async deleted(address) {
    try {
      await sent(address, { method: "DELETE", headers: historyHeaders() });
      return true;
    } catch (failure) {
      if (failure.status === 404) return true; // there is none: that is what was asked for
      this.say(`It could not be forgotten now. Please try again. ${failure.message}`);
      return false;
    }
  }

  say(text) {
    byId("history-said").textContent = text;
  }
}

async function sure(text) {
  byId("sure-about").textContent = text;
  return (await opened(byId("sure"))) === "yes";
}

const path = (conversation) => `/v1/history/${encodeURIComponent(conversation)}`;

const conversationsOf = ({ data }) => data.map(({ session, used, created }) => ({ id: session, date: dateOf(used ?? created) }));

function dateOf(seconds) {
  return new Date(seconds * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}
