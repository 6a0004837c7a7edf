// Looks at a page as its users meet it. Put into the page by the tests.
window.probe = (() => {
  const visible = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && element.getClientRects().length > 0;
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  // Any colour that CSS can write, as red, green, blue and alpha from 0 to 1.
  const parsed = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = (top, below) => [0, 1, 2].map((index) => top[index] * top[3] + below[index] * (1 - top[3])).concat(1);
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.push(parsed(getComputedStyle(each).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [1, 1, 1, 1]);
  };
  const luminance = (colour) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, index) => {
    const value = colour[index];
    return sum + weight * (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  }, 0);
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return Math.round((high + 0.05) / (low + 0.05) * 100) / 100;
  };
  const opacity = (element) => {
    let share = 1;
    for (let each = element; each; each = each.parentElement) share *= Number(getComputedStyle(each).opacity);
    return share;
  };
  const name = (element) => {
    const labelled = (element.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id)?.textContent || "").join(" ").trim();
    const labels = [...(element.labels || [])].map((each) => each.textContent.trim()).join(" ");
    return element.getAttribute("aria-label") || labelled || labels || element.textContent.trim();
  };
  const CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex='0']";

  const contrasts = () => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.textContent.trim() || !visible(element) || element.closest("script, noscript, .hidden, option, :disabled")) continue;
      const style = getComputedStyle(element);
      const back = behind(element);
      const ink = parsed(style.color);
      ink[3] *= opacity(element);
      const size = parseFloat(style.fontSize);
      found.push({ text: node.textContent.trim().slice(0, 40), ratio: ratio(over(ink, back), back),
        large: size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) });
    }
    return found;
  };
  const shapes = () => [...document.querySelectorAll(".shape .solid, .shape .stroke, .wire .lever, .wire .in")].filter((each) => visible(each.ownerSVGElement)).map((each) => {
    const style = getComputedStyle(each);
    const back = behind(each.ownerSVGElement);
    return { shape: each.getAttribute("class"), ratio: ratio(over(parsed(style.fill === "none" ? style.stroke : style.fill), back), back) };
  });
  const controls = () => [...document.querySelectorAll(CONTROLS)].filter(visible).map((each) => ({
    name: name(each), tag: each.tagName, height: Math.round(each.getBoundingClientRect().height), inline: Boolean(each.closest("p, .skip")) || each.type === "checkbox" }));
  const outline = () => {
    const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
    const headings = [...document.querySelectorAll("h1, h2, h3, h4")].filter((each) => each.checkVisibility());
    return { main: document.querySelectorAll("main").length, first_headings: document.querySelectorAll("h1").length, language: document.documentElement.lang,
      repeated_ids: ids.filter((id, index) => ids.indexOf(id) !== index), levels: headings.map((each) => Number(each.tagName[1])) };
  };
  const label = (element) => `${name(element)} <${element.tagName.toLowerCase()}>`;
  const stops = () => [...document.querySelectorAll(CONTROLS)].filter((each) => visible(each) && !each.disabled).map(label);
  const focused = () => {
    const element = document.activeElement;
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    return { label: label(element), visible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1 && box.bottom > 0 && box.top < innerHeight };
  };
  return { contrasts, shapes, controls, outline, stops, focused };
})();
