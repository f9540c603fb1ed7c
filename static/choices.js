// Hides the parts of a form that count beside some choice alone: data-when names its field, data-is the values that show
// them; data-many names a field of which only several values need the part. Without it all parts are shown.
function tailor() {
  const parts = (name) => [...document.querySelectorAll(`[data-${name}]`)];
  const chosen = (part, name) => new FormData(part.closest("form")).getAll(name);
  parts("when").forEach((part) => {
    const values = chosen(part, part.dataset.when);
    part.hidden = values.length > 0 && !part.dataset.is.split(" ").some((value) => values.includes(value));
  });
  parts("many").forEach((part) => { part.hidden = chosen(part, part.dataset.many).length === 1; });
}
tailor();
["change", "htmx:load", "pageshow"].forEach((event) => window.addEventListener(event, tailor));

// What the reader opened stays open where htmx brings it anew.
const opened = new Set();
document.addEventListener("toggle", ({ target }) => opened[target.open ? "add" : "delete"](target.id), true);
window.addEventListener("htmx:load", ({ target }) => {
  target.querySelectorAll("details[id]").forEach((part) => { part.open ||= opened.has(part.id); });
});
