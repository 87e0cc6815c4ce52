const [box, kind, shown] = ["search", "kind", "shown"].map((id) => document.getElementById(id));
const samples = [...document.querySelectorAll(".sample")];
const texts = samples.map((sample) => sample.textContent.toLowerCase());
const filter = () => {
  const words = box.value.toLowerCase().split(" ").filter(Boolean);
  samples.forEach((sample, i) => {
    const chosen = !kind.value || sample.dataset.kind === kind.value;
    sample.hidden = !chosen || !words.every((word) => texts[i].includes(word));
  });
  document.querySelectorAll(".kind").forEach((group) => {
    group.hidden = !group.querySelector(".sample:not([hidden])");
  });
  shown.textContent = `${samples.filter((sample) => !sample.hidden).length} of ${samples.length} prompts`;
};
if (box) {
  document.querySelector(".controls").hidden = false;
  box.addEventListener("input", filter);
  kind.addEventListener("change", filter);
  filter();
}
