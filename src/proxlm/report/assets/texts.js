/* Texts over training: the samples of one step, and a slider over the steps. */
const ENDS = {eos: "ended", stop: "stopped at a stop text", length: "cut at the length limit", done: "its environment ended"};

function facts(sample) {
  const parts = ["step " + sample.step];
  if (sample.prompt_id !== undefined) parts.push("prompt " + sample.prompt_id);
  if (typeof sample.kind === "string") parts.push(sample.kind);
  if (typeof sample.reward === "number") parts.push("reward " + format(sample.reward));
  const components = Object.entries(sample.components ?? {}).filter(([, v]) => v !== null);
  if (components.length > 1) parts.push(...components.map(([name, v]) => name + " " + format(v)));
  if (sample.finish) parts.push(ENDS[sample.finish] ?? String(sample.finish));
  return make("h4", {className: "facts"}, parts.join(" · "));
}

/* What the record says, under what the model does. */
function expected(sample) {
  return typeof sample.expected === "string" ? [make("h4", {}, "in the data"), make("div", {className: "text"}, sample.expected)] : [];
}

function startTexts() {
  const steps = [...new Set(data.samples.texts.map((s) => s.step))], slider = byId("text-step");
  const show = () => {
    const step = steps[slider.value];
    byId("text-step-value").textContent = "step " + step;
    byId("texts").replaceChildren(...data.samples.texts.filter((s) => s.step === step).map((sample) =>
      make("article", {className: "card"}, facts(sample), make("div", {className: "text"},
        make("span", {className: "prompt"}, sample.prompt), sample.response), ...expected(sample))));
  };
  slider.max = steps.length - 1;
  slider.value = steps.length - 1;
  slider.oninput = show;
  const move = (by) => { slider.value = Number(slider.value) + by; show(); };
  byId("text-back").onclick = () => move(-1);
  byId("text-on").onclick = () => move(1);
  if (data.samples.all_steps > steps.length) {
    byId("text-notes").textContent = steps.length + " of the " + data.samples.all_steps + " steps written down.";
  }
  show();
}
