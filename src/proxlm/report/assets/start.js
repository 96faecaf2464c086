/* Light and dark; then everything is drawn. This file comes last. */
const dark = matchMedia("(prefers-color-scheme: dark)");
byId("theme").onclick = () => {
  const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  drawCurves();
};
dark.addEventListener("change", drawCurves);

startCurves();
if (data.samples.texts.length) startTexts();
if (data.samples.tokens.length) startTokens();
