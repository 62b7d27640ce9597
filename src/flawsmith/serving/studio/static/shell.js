// What all pages share: light or dark, the menu of lines.
const root = document.documentElement;

const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

document.querySelector("#theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  // The server reads it, so that a page comes in the right colours at once.
  document.cookie = `flawsmith_theme=${root.dataset.theme}; path=/studio; max-age=31536000; samesite=strict`;
  dispatchEvent(new Event("themechange"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("themechange")));

const switcher = document.querySelector(".switcher");
if (switcher) {
  addEventListener("click", (event) => { if (!switcher.contains(event.target)) switcher.open = false; });
  switcher.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    switcher.open = false;
    switcher.querySelector("summary").focus();
  });
}
