// Keeps one thing for when the server or the network is away: the card with people who can help, and its page.
// Nothing that was said passes through here, and nothing but what is named below is ever stored.

const NAME = "warmline-help-1";
const PAGE = "/static/help.html";
const PARTS = ["theme.js", "help.js", "card.js", "dom.js", "exit.js", "stored.js", "style.css", "parts.css", "icon.svg"];
const FILES = [PAGE, ...PARTS.map((name) => `/static/${name}`)];
const CARD = "/resources";
const WAIT_MS = 4000; // for the server, before the copy is shown

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll([...FILES, CARD])));
});

self.addEventListener("activate", (event) => {
  const old = async () => {
    const names = (await caches.keys()).filter((name) => name.startsWith("warmline-") && name !== NAME);
    await Promise.all(names.map((name) => caches.delete(name)));
    await self.clients.claim();
  };
  event.waitUntil(old());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname, searchParams } = new URL(request.url);
  if (request.method !== "GET" || origin !== self.location.origin) return;
  if (pathname === CARD && !searchParams.has("format")) event.respondWith(fresh(event, CARD));
  else if (FILES.includes(pathname)) event.respondWith(fresh(event, pathname));
  else if (request.mode === "navigate") event.respondWith(fetch(request).catch(() => caches.match(PAGE)));
});

/** The server's answer, which becomes the copy; where it is away, late or ill: the copy, else that of `spare`. */
async function fresh(event, spare) {
  const cache = await caches.open(NAME);
  const copy = (await cache.match(event.request)) ?? (await cache.match(spare));
  const signal = copy ? AbortSignal.timeout(WAIT_MS) : null;
  try {
    const response = await fetch(event.request, { signal });
    if (!response.ok) return copy ?? response;
    event.waitUntil(cache.put(event.request, response.clone()));
    return response;
  } catch (error) {
    if (copy) return copy;
    throw error;
  }
}
