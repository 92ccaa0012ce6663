// The page of `clipjax serve`. What a person gives and what the server answers is text, never HTML.
"use strict";

const find = (id) => document.getElementById(id);
let token = ""; // in this page's memory alone
let picture = null; // a File
let limits = null;
let urls = []; // of the pictures shown in the results

function make(name, text, options = {}) {
  const made = Object.assign(document.createElement(name), options);
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, fields) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers };
  if (fields) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(fields) });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const error = new Error(told.error || `The server answers ${answer.status}.`);
  throw Object.assign(error, { status: answer.status });
}

async function open() {
  try {
    const about = await (await ask("api/about")).json();
    limits = about.limits;
    const rule =
      about.probabilities === "softmax"
        ? "probabilities over all labels (softmax)"
        : "a probability for each label by itself (sigmoid)";
    const found = about.index ? ` · ${about.index.pictures.toLocaleString("en")} pictures to search` : "";
    find("name").textContent = document.title = about.model;
    find("about").textContent = `${rule}${found}`;
    if (Array.isArray(about.templates)) find("template").placeholder = about.templates[0];
    find("search").hidden = !about.index;
    find("entry").hidden = true;
    find("desk").hidden = false;
  } catch (error) {
    if (error.status !== 401) {
      find("about").textContent = error.message;
      return;
    }
    find("about").textContent = "This server asks for a token.";
    find("entry").querySelector(".problem").textContent = token ? "That is not its token." : "";
    find("entry").hidden = false;
    find("token").focus();
  }
}

find("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value.trim();
  find("token").value = "";
  open();
});

function choose(file) {
  if (find("shown").src) URL.revokeObjectURL(find("shown").src);
  picture = file;
  const shown = find("shown");
  shown.hidden = !file;
  find("remove").hidden = !file;
  find("hint").hidden = Boolean(file);
  find("file-name").textContent = file ? file.name : "";
  find("like").checked = Boolean(file);
  if (!file) {
    shown.removeAttribute("src");
    find("file").value = "";
    return;
  }
  shown.src = URL.createObjectURL(file);
  if (find("labels").value.trim()) find("classify").requestSubmit();
}

// A browser shows fewer formats than the server reads.
find("shown").addEventListener("error", () => {
  find("shown").hidden = true;
  find("hint").hidden = false;
});
find("file").addEventListener("change", () => {
  if (find("file").files.length) choose(find("file").files[0]);
});
find("remove").addEventListener("click", () => {
  choose(null);
  find("file").focus();
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // or the browser leaves the page for the picture
    find("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) choose(event.clipboardData.files[0]);
});

async function encoded(file) {
  if ((file.size * 4) / 3 > limits.body_bytes - 65536) {
    throw new Error(`The picture is too large: ${Math.floor((limits.body_bytes * 0.75) / 2 ** 20)} MB are allowed.`);
  }
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The picture cannot be read."));
    reader.readAsDataURL(file);
  });
}

find("labels").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find("classify").requestSubmit();
});

// Enter in a field, or the button: one request at a time, its error beside the button.
function onSubmit(form, run) {
  const [button, problem] = [form.querySelector("button"), form.querySelector(".problem")];
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    problem.textContent = "";
    try {
      form.querySelector(".answers-to").replaceChildren(...(await run()));
    } catch (error) {
      problem.textContent = error.message;
    }
    button.disabled = false;
  });
}

const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

onSubmit(find("classify"), async () => {
  if (!picture) throw new Error("Choose a picture first.");
  const fields = { image: await encoded(picture), labels: find("labels").value.replaceAll("\n", ",") };
  const template = find("template").value.trim();
  if (template) fields.templates = template;
  const found = await (await ask("api/classify", fields)).json();
  const list = make("ol", undefined, { className: "scores", tabIndex: 0 });
  list.setAttribute("aria-label", "labels, the most probable first");
  for (const { label, probability } of found.labels) {
    const row = make("li");
    row.style.setProperty("--share", `${(100 * probability).toFixed(1)}%`);
    row.append(make("span", label, { title: label }), make("data", percent(probability), { value: probability }));
    list.append(row);
  }
  return [list];
});

async function figure(result) {
  const words = result.captions.join("; ") || result.key;
  const made = make("figure");
  const caption = make("figcaption", result.cosine.toFixed(3));
  caption.append(make("span", result.captions[0] || result.key));
  try {
    const url = URL.createObjectURL(await (await ask(`api/pictures/${result.number}`)).blob());
    urls.push(url);
    made.append(make("img", undefined, { src: url, alt: words, title: `${result.key}: ${words}` }));
  } catch (error) {
    made.append(make("p", error.message));
  }
  made.append(caption);
  return made;
}

onSubmit(find("search"), async () => {
  const [query, minus] = [find("query").value.trim(), find("minus").value.trim()];
  const like = find("like").checked;
  if (like && !picture) throw new Error("Choose a picture first.");
  if (!like && !query) throw new Error("Write what to look for, or choose a picture.");
  const fields = {};
  if (query) fields.query = query;
  if (minus) fields.minus = minus;
  if (like) fields.image = await encoded(picture);
  const found = await (await ask("api/search", fields)).json();
  urls.splice(0).forEach(URL.revokeObjectURL);
  const row = make("div", undefined, { className: "row wide" });
  row.append(...(await Promise.all(found.results.map(figure))));
  const told = `The nearest of ${found.searched.toLocaleString("en")}, with their cosines`;
  return [make("p", told), row];
});

open();
