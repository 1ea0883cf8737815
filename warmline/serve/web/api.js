// Requests to the server that served this page, and the reading of a streamed answer.

import { tab } from "./stored.js";

/** What went wrong. `status` 0: nothing came back, or the stream broke. `wait`: seconds that the server asks for. */
export class Failure extends Error {
  constructor(status, message, wait = null) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

let unlock = async () => false;
let unlocking = null;

/** `ask(again)` is called when the server wants a key: it stores one and gives true, or false to give up. */
export function whenLocked(ask) {
  unlock = ask;
}

/** The response of a request; throws Failure for every other status than 2xx. */
export async function request(path, { method = "GET", body, signal, headers = {} } = {}) {
  for (let again = false; ; again = true) {
    const key = tab.get("access");
    const sent = { ...headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    const options = { method, headers: sent, signal, cache: "no-store", credentials: "omit" };
    if (body !== undefined) options.body = JSON.stringify(body);
    const response = await fetched(path, options);
    if (response.ok) return response;
    if (response.status !== 401 || !(await unlocked(again, key))) throw await failureOf(response);
  }
}

async function fetched(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The server cannot be reached.");
  }
}

/** One question for a key, however many requests met the lock. */
async function unlocked(again, key) {
  if (tab.get("access") !== key) return true; // given in the meantime
  unlocking ??= unlock(again).finally(() => (unlocking = null));
  return unlocking;
}

async function failureOf(response) {
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch {
    // not an object of ours: the status is all there is
  }
  return new Failure(response.status, String(message), Number.isNaN(wait) ? null : wait);
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

/** A request whose answer says nothing that matters; it is read all the same, which frees the connection. */
export async function sent(path, options) {
  await (await request(path, options)).arrayBuffer();
}

let model = null;

/** The name to ask for: the latest stage, which is the name without a colon. */
export async function modelName() {
  if (model === null) {
    const names = (await json("/v1/models")).data.map((each) => each.id);
    model = names.find((name) => !name.includes(":")) ?? names[0];
  }
  return model;
}

/** The chunks of a streamed answer, as objects; throws Failure where it breaks off before its end. */
export async function* complete(body, { signal, headers }) {
  const response = await request("/v1/chat/completions", { method: "POST", body, signal, headers });
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new Failure(0, String(chunk.error.message ?? "The answer broke off."));
    yield chunk;
  }
  throw new Failure(0, "The answer broke off before its end.");
}

function parsed(data) {
  try {
    const chunk = JSON.parse(data);
    if (chunk !== null && typeof chunk === "object") return chunk;
  } catch {
    // told below
  }
  throw new Failure(0, "The answer could not be read.");
}

/** The data of each server-sent event. Lines may end in LF, CRLF or CR, at any place in the chunks that arrive. */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await read(reader);
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const held = !done && rest.endsWith("\r") ? 1 : 0; // its LF may be on the way
      const lines = rest.slice(0, rest.length - held).split(/\r\n|\n|\r/);
      rest = lines.pop() + rest.slice(rest.length - held);
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops reading frees the server's place
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The connection broke off.");
  }
}
