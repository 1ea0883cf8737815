// Elements built by calls. Text becomes text nodes and nothing here parses HTML, whoever wrote the text.

/** An element with attributes (true: present, false or null: absent), listeners (`onclick: f`) and children or texts. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** Only what a card or a link may open; anything else (such as `javascript:`) gives null. */
export function safeHref(uri) {
  return typeof uri === "string" && /^(tel:|sms:|https:\/\/)/i.test(uri) ? uri : null;
}

/** Say something to screen readers that is not part of the conversation. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Open a dialog and resolve with its return value when it closes. */
export function opened(dialog) {
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}
