"use strict";
(() => {
  const root = document.documentElement;
  addEventListener("error", (event) => { root.dataset.error = event.message; });

  const tip = document.getElementById("tip");
  const showTip = (content, x, y) => {
    tip.replaceChildren(content);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  const text = (value) => document.createTextNode(value);
  addEventListener("scroll", hideTip, { passive: true });

  // Bars, dots and cells: the text of the one below the pointer, or of the one that arrow keys reach.
  const rove = (list) => {
    const items = [...list.querySelectorAll("[data-tip]")];
    const columns = Number(list.dataset.rove);
    const steps = { ArrowDown: columns, ArrowUp: -columns, ArrowRight: 1, ArrowLeft: -1 };
    let active = -1;
    const activate = (index) => {
      items[active]?.classList.remove("active");
      active = index;
      if (!items[active]) { hideTip(); return; }
      items[active].classList.add("active");
      items[active].scrollIntoView({ block: "nearest", inline: "nearest" });
      const box = items[active].getBoundingClientRect();
      showTip(text(items[active].dataset.tip), box.left + box.width / 2, box.bottom);
    };
    list.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { activate(-1); return; }
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = active < 0 ? 0 : active + steps[event.key];
      if (items[next]) activate(next);
    });
    list.addEventListener("blur", () => activate(-1));
    list.addEventListener("pointermove", (event) => {
      const item = event.target.closest("[data-tip]");
      if (item) showTip(text(item.dataset.tip), event.clientX, event.clientY);
      else hideTip();
    });
    list.addEventListener("pointerleave", hideTip);
  };
  document.querySelectorAll("[data-rove]").forEach(rove);

  // Charts: the values of the step that is nearest to the pointer.
  const number = (value) => (value === null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 4 }));
  const table = (step, series, index) => {
    const content = document.createElement("table");
    content.createCaption().textContent = `step ${step.toLocaleString("en")}`;
    for (const { name, color, values } of series) {
      const row = content.insertRow();
      const mark = document.createElement("i");
      mark.style.background = color;
      row.insertCell().append(mark, name);
      row.insertCell().textContent = number(values[index]);
    }
    return content;
  };
  const interact = (svg) => {
    const { range, steps, series } = JSON.parse(svg.dataset.chart);
    const [first, last, left, right] = range;
    const cursor = svg.querySelector(".cursor");
    let current = -1;
    const show = (index, y) => {
      current = index;
      const x = left + ((steps[index] - first) / (last - first)) * (right - left);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.style.visibility = "visible";
      const box = svg.getBoundingClientRect();
      const clientX = box.left + (x / svg.viewBox.baseVal.width) * box.width;
      showTip(table(steps[index], series, index), clientX, y ?? box.top + box.height / 3);
    };
    const hide = () => {
      current = -1;
      cursor.style.visibility = "hidden";
      hideTip();
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const wanted = first + ((x - left) / (right - left)) * (last - first);
      let nearest = 0;
      steps.forEach((step, index) => {
        if (Math.abs(step - wanted) < Math.abs(steps[nearest] - wanted)) nearest = index;
      });
      show(nearest, event.clientY);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { hide(); return; }
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      event.preventDefault();
      const next = current < 0 ? (move > 0 ? 0 : steps.length - 1) : current + move;
      show(Math.min(steps.length - 1, Math.max(0, next)));
    });
  };
  document.querySelectorAll("svg[data-chart]").forEach(interact);

  // Dots of classes: the class below the pointer, in a chart or in the legend, stands out in all charts.
  const clouds = [...document.querySelectorAll(".points")];
  const choose = (label) => clouds.forEach((svg) => {
    svg.classList.toggle("chosen", label !== undefined);
    [...svg.children].forEach((group) => group.classList.toggle("chosen", group.dataset.class === label));
  });
  if (clouds.length) {
    addEventListener("pointerover", (event) => choose(event.target.closest("[data-class]")?.dataset.class));
  }

  // Pictures: the classes below the pointer, read from the colours of the label pictures.
  const legend = document.querySelector("[data-classes]");
  const classes = legend ? JSON.parse(legend.dataset.classes) : {};
  const reader = (image) => {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return (x, y) => {
      const at = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
      return classes[[...context.getImageData(at[0], at[1], 1, 1).data].slice(0, 3).join()] ?? "?";
    };
  };
  document.querySelectorAll(".panels").forEach((row) => {
    const images = [...row.querySelectorAll("img")];
    const names = (row.dataset.read ?? "truth,prediction").split(","); // of the pictures after the image
    let read;
    row.addEventListener("pointermove", (event) => {
      if (event.target.tagName !== "IMG") { hideTip(); return; }
      read ??= names.map((_, place) => reader(images[place + 1]));
      const box = event.target.getBoundingClientRect();
      const x = Math.min(0.9999, Math.max(0, (event.clientX - box.left) / box.width));
      const y = Math.min(0.9999, Math.max(0, (event.clientY - box.top) / box.height));
      const classesHere = names.map((name, place) => `${name}: ${read[place](x, y)}`);
      showTip(text(classesHere.join(", ")), event.clientX, event.clientY);
    });
    row.addEventListener("pointerleave", hideTip);
  });

  // Pictures: a click enlarges one; arrow keys go to its neighbours.
  const dialog = document.getElementById("enlarged");
  const buttons = [...document.querySelectorAll(".picture")];
  let shown = 0;
  const enlarge = (index) => {
    shown = (index + buttons.length) % buttons.length;
    const [source, target] = [buttons[shown].querySelector("img"), dialog.querySelector("img")];
    target.src = source.src;
    target.alt = source.alt;
    target.className = source.naturalWidth < innerWidth ? "pixelated" : "";
    dialog.querySelector("figcaption").textContent = buttons[shown].dataset.caption;
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => {
    hideTip();
    enlarge(index);
    dialog.showModal();
  }));
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) enlarge(shown + move);
  });
  dialog.addEventListener("close", () => buttons[shown]?.focus());

  root.dataset.ready = "true";
})();
