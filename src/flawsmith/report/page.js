"use strict";
// Opens pictures at full size, and tries other limits: counts, sentence, line and galleries follow.
(() => {
  const words = { pass: "● pass", review: "▲ review", reject: "■ reject" };
  const zoom = document.querySelector("#zoom");
  const show = (card) => {
    zoom.querySelector("h3").textContent = card.querySelector("figcaption").textContent;
    zoom.querySelector(".pictures").replaceChildren(...[...card.querySelectorAll(".tiles > div")].map((tile) => tile.cloneNode(true)));
    zoom.showModal();
  };
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-show]");
    if (opener) show(document.getElementById(opener.dataset.show));
    else if (event.target === zoom) zoom.close();
  });
  const slider = document.querySelector("#try");
  if (!slider) return;
  const steps = JSON.parse(slider.dataset.steps);
  const start = slider.value;
  const review = slider.dataset.review === "" ? Infinity : Number(slider.dataset.review);
  const line = document.querySelector("#line");
  const cards = [...document.querySelectorAll("figure[data-score]")];
  const rows = [...document.querySelectorAll("tr[data-score]")];
  const verdictOf = (item, limit) => {
    const score = Number(item.dataset.score);
    return score > limit ? "reject" : score > review ? "review" : "pass";
  };
  const tell = (item, limit) => {
    const verdict = verdictOf(item, limit);
    const flawed = item.dataset.flawed === "1";
    const shown = item.querySelector(".verdict");
    shown.textContent = words[verdict];
    shown.className = "verdict " + ((verdict === "reject") === flawed ? "right" : "wrong");
    return flawed ? (verdict === "reject" ? "found" : "miss") : verdict === "reject" ? "false_alarm" : "passed";
  };
  cards.sort((one, other) => Number(other.dataset.score) - Number(one.dataset.score));
  const apply = () => {
    const [limit, missed, rejected, sentence] = steps[slider.value];
    const values = { missed, rejected };
    for (const item of document.querySelectorAll("[data-follows]")) item.textContent = values[item.dataset.follows];
    document.querySelector("#sentence").textContent = sentence;
    slider.setAttribute("aria-valuetext", sentence);
    document.querySelector("#back").hidden = slider.value === start;
    document.body.classList.toggle("tried", slider.value !== start);
    if (line) {
      const [left, right, low, high] = line.dataset.axis.split(" ").map(Number);
      line.style.left = 100 * (left + ((right - left) * (limit - low)) / (high - low)) + "%";
      line.hidden = slider.value === start;
    }
    const homes = { miss: [], false_alarm: [], found: [], passed: [] };
    for (const card of cards) homes[tell(card, limit)].push(card);
    homes.miss.reverse();
    homes.found.reverse();
    for (const [kind, members] of Object.entries(homes)) {
      const home = document.getElementById(kind);
      if (!home) continue;
      home.querySelector(".gallery").replaceChildren(...members);
      home.querySelector(".count").textContent = members.length;
      home.hidden = members.length === 0;
    }
    for (const row of rows) tell(row, limit);
  };
  slider.addEventListener("input", apply);
  document.querySelector("#back").addEventListener("click", () => {
    slider.value = start;
    apply();
  });
})();
