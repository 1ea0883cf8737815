// The page's composition: every part is made and joined here.

import { sent, whenLocked } from "./api.js";
import { drawn, loadCard } from "./card.js";
import { Chat } from "./chat.js";
import { announce, byId, opened } from "./dom.js";
import { setUpExit } from "./exit.js";
import { Feelings } from "./feelings.js";
import { HistorySettings, historyHeaders, isKeeping, keep, kept } from "./history.js";
import { Messages } from "./messages.js";
import { acknowledged } from "./notice.js";
import { Pinned } from "./pinned.js";
import { askForKey, setUpSettings } from "./settings.js";
import { chosenStyle, setUpStyle } from "./style.js";
import { tab } from "./stored.js";

const LEVELS = ["none", "elevated", "high", "emergency"];

const messages = new Messages(byId("log"), byId("talk"));
const feelings = new Feelings();
const box = byId("message");
const pinned = new Pinned(byId("card-place"), acted);
const chat = new Chat({
  style: chosenStyle,
  headers: historyHeaders,
  on: { asked: (text) => messages.user(text), started: () => messages.reply(), opening, closing, done, failed, busy },
});
const history = new HistorySettings(chat, { open: goOn, fresh });
let offered = false; // the quiet line about support, once in a stretch of heavier talk

function opening({ level, card }) {
  pinned.arrive(card ?? null);
  const heavy = LEVELS.indexOf(level) === 1;
  if (heavy && !offered && pinned.card === null) offer();
  offered = heavy;
}

function offer() {
  messages.app("If you would like, there are people you can talk with.", {
    "Get support now": () => support(),
    "This isn’t about me being in danger": (line) => {
      acted("not_me");
      line.remove();
      box.focus();
    },
  });
}

function closing({ readings, disclosure }) {
  if (readings) feelings.add(readings);
  for (const text of disclosure?.texts ?? []) messages.app(text);
}

async function done() {
  if (!(await keep(chat.conversation, chat.turns))) {
    messages.app("This exchange could not be kept. It stays here until you leave.", {
      "Try again": (line) => {
        line.remove();
        done();
      },
    });
  }
}

function failed(failure, spoke) {
  const waits = failure.wait ? ` in ${failure.wait === 1 ? "a second" : `${failure.wait} seconds`}` : "";
  const why = { 401: "This server asks for a key.", 429: "Many people are talking here right now." };
  const lead = why[failure.status] ?? (spoke ? "The answer broke off." : failure.message);
  const text = `${lead} Your words are still here; you can try again${waits}. “Get support now” works all the same.`;
  messages.app(text, {
    "Try again": (line) => {
      if (chat.isBusy) return;
      line.remove();
      chat.answer();
      box.focus();
    },
  });
}

function busy(isBusy) {
  byId("send").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  if (!isBusy && document.activeElement === document.body) box.focus();
}

/** What the card's buttons tell the server; the page goes on whether or not it hears. */
function acted(action) {
  if (action === "with_me") {
    messages.app("It is good that someone is with you. The card stays here.");
    announce("Noted.");
  }
  if (!["with_me", "not_me", "hide"].includes(action)) return;
  const address = `/v1/sessions/${encodeURIComponent(chat.session)}/actions`;
  sent(address, { method: "POST", body: { action }, headers: historyHeaders() }).catch(() => {});
}

/** The card in a dialog, at every level and over every other dialog. */
async function support(event) {
  event?.preventDefault();
  const dialog = byId("help");
  const draw = async (country, about) => {
    const loaded = await loadCard(country, about);
    const card = { ...loaded, actions: loaded.actions.filter(({ id }) => id !== "hide") }; // the dialog has "Close"
    const act = async (id, value) => {
      if (id === "country") {
        choseCountry(value);
        await draw(value, about);
      } else if (id === "other" || id === "self") await draw(card.country, id);
      else if (id === "with_me") {
        acted(id);
        dialog.close();
      }
    };
    byId("help-card").replaceChildren(drawn(card, act));
    byId("help-card").querySelector(".card-title").focus();
  };
  byId("help-card").replaceChildren();
  opened(dialog);
  await draw(tab.get("country") ?? pinned.shown?.country ?? "", "self");
}

function choseCountry(code) {
  tab.set("country", code || null);
  pinned.move(code);
}

function fresh() {
  chat.use([]);
  messages.clear();
  feelings.clear();
}

function goOn(id, turns) {
  chat.use(turns, id);
  messages.clear();
  feelings.clear();
  showTurns(turns);
  byId("settings").close();
  box.focus();
}

function showTurns(turns) {
  for (const { role, content } of turns) {
    if (role === "user") messages.user(content);
    else messages.reply(content).ended();
  }
}

function setUpComposer() {
  const send = () => {
    const text = box.value.trim();
    if (text === "" || chat.isBusy) return;
    box.value = "";
    chat.send(text);
  };
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", () => {
    chat.stop();
    busy(false);
    announce("Stopped.");
    box.focus();
  });
}

/** What a reload brings back: the card always, the words only where they are kept. */
async function restore() {
  pinned.restore();
  const wasTalking = tab.get("talking") !== null;
  tab.set("talking", "yes");
  const conversation = chat.conversation;
  const turns = wasTalking ? await kept(conversation) : [];
  if (turns.length && chat.turns.length === 0 && chat.conversation === conversation) {
    chat.use(turns, conversation);
    showTurns(turns);
  } else if (wasTalking && !isKeeping() && chat.turns.length === 0) {
    messages.app("The page was loaded again. What was said before was not kept.");
  }
}

function setUp() {
  whenLocked(askForKey);
  setUpStyle();
  setUpComposer();
  setUpSettings({
    opened: () => history.refresh(),
    country: choseCountry,
    feelings: (isShown) => feelings.allow(isShown),
    fresh: () => {
      fresh();
      box.focus();
    },
  });
  setUpExit(byId("leave"), () => {
    chat.forget();
    feelings.points = [];
  });
  byId("support").addEventListener("click", support);
  for (const button of document.querySelectorAll("[data-closes]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  navigator.serviceWorker?.register("/sw.js", { scope: "/" }).catch(() => {});
}

setUp();
await acknowledged(support);
await restore();
box.focus();
