// Asks the server's own REST API, as any client does; what it shows of items is set as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);
const history = []; // {id, title}, oldest first
const wishes = new Map(); // label -> -1 or 1
let newest = 0; // the number of the newest request; answers to older ones are dropped
let signatures = {};

async function call(path, body) {
  const model = encodeURIComponent(at("model").value);
  const answer = await fetch(`v1/models/${model}${path}`, body && { method: "POST", body: JSON.stringify(body) });
  const document = await answer.json();
  if (!answer.ok) throw new Error(document.error || `${answer.status}`);
  return document;
}

// Inputs as columns; those that the signature does not have are left out.
async function predict(name, inputs) {
  const known = signatures[name].inputs;
  const asked = Object.fromEntries(Object.keys(known).map((key) => [key, inputs[key]]));
  return (await call(":predict", { signature_name: name, inputs: asked })).outputs;
}

function common() {
  const listed = (id) => ["", ...at(id).value.split(";").map((part) => part.trim()).filter(Boolean)];
  return {
    history: [["", ...history.map((item) => item.id)]],
    ratings: [[]],
    event_fields: [[""]],
    context: [listed("context")],
    exclude: [[""]],
    allow: [[""]],
    categories: [listed("categories")],
    k: [10],
    diversity: [Number(at("diversity").value)],
    pinned: [[""]],
    category_cap: [0],
    tail_share: [0],
    skip: [[""]],
    label_weights: [["", ...[...wishes].map(([label, weight]) => `${label}=${weight}`)]],
    reasons: [10],
  };
}

function itemsOf(outputs) {
  const { item_ids: [ids], titles: [titles], reasons: [reasons] = [[]] } = outputs; // a search has no reasons
  const items = ids.map((id, place) => ({ id, title: titles[place] || id, reason: reasons[place] || "" }));
  return items.filter((item) => item.id);
}

function show(list, items, click, detail) {
  at(list).replaceChildren(
    ...items.map((item, place) => {
      const line = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = item.title;
      button.addEventListener("click", () => click(item, place));
      if (detail) button.append(...detail(place));
      line.append(button);
      return line;
    }),
  );
}

function add(item) {
  history.push(item);
  update();
}

function detailOf(terms, place, reason) {
  const names = ["meaning", "feedback", "behaviour"];
  const values = names.map((name) => Math.max(terms[name][0][place], 0));
  const all = values.reduce((sum, value) => sum + value, 0) || 1;
  const bar = document.createElement("span");
  bar.className = "bar";
  names.forEach((name, i) => {
    const part = document.createElement("i");
    part.className = name;
    part.style.width = `${(100 * values[i]) / all}%`;
    bar.append(part);
  });
  bar.title = names.map((name) => `${name} ${terms[name][0][place].toFixed(2)}`).join(", ");
  if (!reason) return [bar];
  const why = document.createElement("span");
  why.className = "why";
  why.textContent = reason;
  return [why, bar];
}

async function recommend() {
  const found = itemsOf(await predict("recommend_full", common()));
  if (!found.length || !signatures.explain) return { found };
  const terms = await predict("explain", { ...common(), items: [found.map((item) => item.id)] });
  return { found, terms };
}

async function interests() {
  if (!signatures.interests || !history.length) return [];
  const { labels } = await predict("interests", common());
  return labels[0].filter(Boolean);
}

function showInterests(labels) {
  for (const label of wishes.keys()) if (!labels.includes(label)) labels.push(label);
  at("labels").hidden = !labels.length;
  at("interests").replaceChildren(
    ...labels.map((label) => {
      const line = document.createElement("li");
      line.append(`${label} `);
      for (const [weight, sign, name] of [[1, "+", "more"], [-1, "−", "less"]]) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = sign;
        button.setAttribute("aria-label", `${name} ${label}`);
        button.setAttribute("aria-pressed", wishes.get(label) === weight);
        button.className = wishes.get(label) === weight ? name : "";
        button.addEventListener("click", () => {
          if (wishes.get(label) === weight) wishes.delete(label);
          else wishes.set(label, weight);
          update();
        });
        line.append(button);
      }
      return line;
    }),
  );
}

// Runs one question after another action of the user; only the answer to the newest one is shown.
async function asking(question, show) {
  const number = ++newest;
  try {
    const answer = await question();
    if (number !== newest) return;
    at("problem").hidden = true;
    show(answer);
  } catch (problem) {
    if (number !== newest) return;
    at("problem").textContent = problem.message;
    at("problem").hidden = false;
  }
}

function update() {
  at("empty").hidden = history.length > 0;
  at("clear").hidden = !history.length;
  show("history", history, (_, place) => { history.splice(place, 1); update(); });
  asking(
    async () => ({ ...(await recommend()), labels: await interests() }),
    ({ found, terms, labels }) => {
      show("recommended", found, add, terms && ((place) => detailOf(terms, place, found[place].reason)));
      showInterests(labels);
    },
  );
}

async function begin() {
  history.length = 0;
  wishes.clear();
  at("found").replaceChildren();
  await asking(
    async () => (await call("/metadata")).metadata.signature_def.signature_def,
    (found) => { signatures = found; },
  );
  if (signatures.recommend_full && signatures.search_full) update();
  else if (at("problem").hidden) {
    at("problem").textContent = "This model lacks the signatures recommend_full and search_full, which this page needs.";
    at("problem").hidden = false;
  }
}

at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  asking(
    async () => itemsOf(await predict("search_full", { ...common(), text: [at("text").value], history: [[""]] })),
    (found) => show("found", found, add),
  );
});
at("clear").addEventListener("click", () => { history.length = 0; wishes.clear(); update(); });
at("filters").addEventListener("change", update);
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("model").addEventListener("change", begin);
begin();
