// The conversation: what was said so far, and one exchange at a time with the server.

import { complete, Failure, modelName } from "./api.js";
import { randomText, tab } from "./stored.js";

const NUM_SENT = 120; // of the newest turns; the server keeps by itself what earlier ones mean

/**
 * `on`: what the page does at each step:
 * `asked(text)`, `started()` -> reply, `opening(warmline)` before any word, `closing(warmline)`, `done()`,
 * `failed(failure, spoke)`, `busy(isBusy)`. `style()` and `headers()` are asked for with each request.
 */
export class Chat {
  constructor({ style, headers, on }) {
    this.style = style;
    this.headers = headers;
    this.on = on;
    this.turns = []; // {role, content, t}; t in seconds since 1970
    this.stopping = null;
    // Risk is held for the tab, whatever is begun anew in it; a conversation has a name of its own to be kept under.
    this.session = tab.get("session") ?? randomText(16);
    this.conversation = tab.get("conversation") ?? this.session;
    tab.set("session", this.session);
    tab.set("conversation", this.conversation);
  }

  get isBusy() {
    return this.stopping !== null;
  }

  /** Begin anew, or go on with a kept conversation. */
  use(turns, conversation = randomText(16)) {
    this.stop();
    this.turns = turns;
    this.conversation = conversation;
    tab.set("conversation", conversation);
  }

  /** For good: the page is being left, and nothing of it is there any more. */
  forget() {
    for (const name of Object.keys(this.on)) this.on[name] = () => {};
    this.stop();
    this.turns = [];
  }

  stop() {
    this.stopping?.abort();
    this.stopping = null;
  }

  async send(text) {
    if (this.isBusy) return;
    this.turns.push({ role: "user", content: text, t: now() });
    this.on.asked(text);
    await this.answer();
  }

  /** Ask for the answer to the newest turns; again after a failure. */
  async answer() {
    const stopping = new AbortController();
    const turns = this.turns;
    this.stopping = stopping;
    this.on.busy(true);
    const reply = this.on.started();
    let said = "";
    let closing = null;
    try {
      for await (const chunk of complete(await this.body(), { signal: stopping.signal, headers: this.headers() })) {
        if (stopping.signal.aborted) break;
        if (chunk.warmline && said === "" && closing === null) this.on.opening(chunk.warmline);
        if (chunk.warmline) closing = chunk.warmline;
        const piece = chunk.choices?.[0]?.delta?.content ?? "";
        if (piece) reply.append(piece);
        said += piece;
      }
      this.kept(turns, said, reply, closing);
      if (closing !== null && !stopping.signal.aborted) this.on.closing(closing);
    } catch (error) {
      this.kept(turns, said, reply, closing);
      if (!stopping.signal.aborted) this.on.failed(asFailure(error), said !== "");
    } finally {
      reply.ended();
      if (this.stopping === stopping) this.stopping = null;
      if (!this.isBusy) this.on.busy(false);
    }
    if (turns === this.turns) this.on.done();
  }

  async body() {
    const messages = this.turns.slice(-NUM_SENT).map(({ role, content }) => ({ role, content }));
    const style = this.style();
    const warmline = { session: this.session, renders_card: true };
    const country = tab.get("country");
    if (country) warmline.country = country;
    if (Object.keys(style).length) warmline.style = style;
    return { model: await modelName(), messages, stream: true, warmline };
  }

  /** What was released stays said, also where it was cut short. What the app said is no turn of the companion's. */
  kept(turns, said, reply, closing) {
    if (said === "") reply.removed();
    else if (closing?.reply_source === "notice") reply.fromApp();
    else turns.push({ role: "assistant", content: said, t: now() });
  }
}

const now = () => Math.round(Date.now() / 1000);
const asFailure = (error) => (error instanceof Failure ? error : new Failure(0, "Something on this page went wrong."));
