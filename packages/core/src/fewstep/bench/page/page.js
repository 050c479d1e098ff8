"use strict";
// Filters, sorting, clips on one clock, enlarged samples, and links that open what they lead to.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const filters = document.querySelector(".filters");
const filtered = all("[data-facets]").map((element) => ({ element, facets: JSON.parse(element.dataset.facets) }));
function filter() {
  const wanted = [...new FormData(filters)].filter(([, value]) => value);
  for (const { element, facets } of filtered) element.hidden = !wanted.every(([name, value]) => facets[name].includes(value));
  for (const rest of all(".rest")) {
    rest.hidden = !all(".sheet", rest).some((sheet) => !sheet.hidden);
    rest.open = wanted.length > 0;
  }
  for (const section of all(".method")) section.hidden = !all(".sheet", section).some((sheet) => !sheet.hidden);
  const sheets = all(".sheet"), left = sheets.filter((sheet) => !sheet.hidden).length;
  filters.querySelector("output").textContent = `${left} of ${sheets.length} sheets`;
}
filters.hidden = false;
filters.addEventListener("change", filter);
filters.addEventListener("reset", () => setTimeout(filter));
filter();

for (const table of all(".sortable")) {
  const heads = all("thead th", table), body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const numeric = [...body.rows].some((row) => row.cells[column].dataset.value !== undefined);
    const compare = numeric
      ? (a, b) => (key(a) === "") - (key(b) === "") || (down ? key(b) - key(a) : key(a) - key(b))  // unknown last
      : (a, b) => (down ? 1 : -1) * key(a).localeCompare(key(b), "en", { numeric: true });
    body.append(...[...body.rows].sort(compare));
  }));
}

for (const samples of all(".samples")) {
  const choice = samples.querySelector(".beside");
  if (!choice) continue;
  const show = () => all(".sample", samples).forEach((sample) => { sample.hidden = !["0", choice.value].includes(sample.dataset.arm); });
  choice.addEventListener("change", show);
  show();
}

function tick(now) {
  for (const clip of all(".clip")) {
    const frames = +clip.dataset.frames, frame = Math.floor(now / clip.dataset.milliseconds) % frames;
    if (clip.dataset.frame === String(frame)) continue;
    clip.dataset.frame = frame;
    clip.style.backgroundPosition = `${(100 * frame) / (frames - 1)}% 0`;
  }
  requestAnimationFrame(tick);
}
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) requestAnimationFrame(tick);

const zoom = document.querySelector(".zoom");
for (const button of all(".media")) button.addEventListener("click", () => {
  const large = button.firstElementChild.cloneNode(true);
  const ratio = button.offsetWidth / button.offsetHeight;
  const width = Math.min(innerWidth * 0.9, (innerHeight * 0.8) * ratio);
  large.style.width = `${Math.max(width, Math.min(720, innerHeight * 0.8 * ratio))}px`;
  large.style.height = "auto";
  zoom.querySelector("p").textContent = large.getAttribute("aria-label") || large.alt;
  zoom.querySelector("div").replaceChildren(large);
  zoom.showModal();
});
zoom.addEventListener("click", (event) => { if (event.target === zoom || event.target.tagName === "BUTTON") zoom.close(); });

function reveal() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") {
    if (target.hidden) filters.reset(), filter();
    for (let fold = target; fold; fold = fold.parentElement.closest("details")) fold.open = true;
    setTimeout(() => target.scrollIntoView());
  }
}
addEventListener("hashchange", reveal);
reveal();

const links = new Map(all(".links a").map((link) => [link.getAttribute("href").slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) {
    links.forEach((link) => link.classList.remove("here"));
    const link = links.get(entry.target.id);
    link.classList.add("here");
    link.parentElement.scrollTo({ left: link.offsetLeft - link.parentElement.offsetLeft - 40 });
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const id of links.keys()) seen.observe(document.getElementById(id));
