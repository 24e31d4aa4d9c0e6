"use strict";
const root = document.documentElement;

// -- light and dark --

const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

function nameTheme() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", isDark() ? "Show light colours" : "Show dark colours");
}

theme.hidden = false;
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
system.addEventListener("change", nameTheme);
nameTheme();

// -- which section is in view --

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const inView = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting);
  },
  { rootMargin: "-30% 0px -60% 0px" },
);
for (const section of document.querySelectorAll("main > section")) inView.observe(section);

// -- edits: two of their pictures at a time, behind a slider --

function slide(compare) {
  const input = compare.querySelector("input");
  compare.style.setProperty("--split", `${input.value}%`);
  input.setAttribute("aria-valuetext", `${input.value} % ${compare.dataset.left ?? "before"}`);
}

function show(card, entry, left, right) {
  const compare = card.querySelector(".compare");
  const find = (kind) =>
    compare.querySelector(kind === "after" ? `[data-kind=after][data-entry="${entry}"]` : `[data-kind=${kind}]`);
  const sides = [find(left), find(right)];
  for (const image of compare.querySelectorAll("img")) {
    image.hidden = !sides.includes(image);
    image.classList.toggle("left", image === sides[0]);
  }
  const alone = !sides[0] || !sides[1];
  compare.classList.toggle("alone", alone);
  compare.dataset.left = left;
  const input = compare.querySelector("input");
  for (const part of [input, compare.querySelector(".handle")]) part.hidden = alone;
  const names = compare.querySelectorAll(".side");
  [left, right].forEach((kind, place) => {
    names[place].hidden = !sides[place];
    names[place].textContent = kind;
  });
  input.setAttribute("aria-label", `${left} and ${right}: ${compare.dataset.prompt}`);
  slide(compare);
  for (const part of card.querySelectorAll(".measured")) part.hidden = part.dataset.entry !== entry;
}

for (const gallery of document.querySelectorAll(".gallery")) {
  const list = gallery.querySelector(".edits");
  const cards = [...list.children];
  const chosen = (name, otherwise) => gallery.querySelector(`[data-filter=${name}]`)?.value ?? otherwise;

  const update = () => {
    const [category, entry, order] = [chosen("category", ""), chosen("bundle", "0"), chosen("order", "psnr")];
    const [left, right] = chosen("compare", "before-after").split("-");
    const value = (card) => {
      if (order === "number") return Number(card.dataset.number);
      const found = card.querySelector(`.measured[data-entry="${entry}"]`)?.getAttribute(`data-value-${order}`);
      if (found === null || found === undefined) return Infinity;
      return ["flip", "lpips"].includes(order) ? -Number(found) : Number(found);
    };
    let count = 0;
    for (const card of cards) {
      const made = card.querySelector(`[data-kind=after][data-entry="${entry}"]`);
      card.hidden = !made || (category !== "" && card.dataset.category !== category);
      count += card.hidden ? 0 : 1;
      if (!card.hidden) show(card, entry, left, right);
    }
    const placed = cards.map((card) => [value(card), Number(card.dataset.number), card]);
    placed.sort((a, b) => (a[0] === b[0] ? a[1] - b[1] : a[0] - b[0]));
    list.append(...placed.map((each) => each[2]));
    gallery.querySelector(".count").textContent = count === 1 ? "1 edit" : `${count} edits`;
  };

  gallery.addEventListener("change", (event) => event.target.matches("select") && update());
  gallery.addEventListener("input", (event) => event.target.type === "range" && slide(event.target.closest(".compare")));
  update();
}
