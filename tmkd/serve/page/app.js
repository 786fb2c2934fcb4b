"use strict";
// The page: asks /ask, shows what comes back. Text from documents only ever becomes text nodes.

const $ = (id) => document.getElementById(id);
const root = new URL("../", document.currentScript.src); // also behind a proxy that serves this below a path
const LONG = 900; // characters beyond which a passage is folded
let asked = 0; // answers to an earlier question are dropped

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

class Problem extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function call(path, body) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(new URL(path, root), { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Problem(0, "The server cannot be reached.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, content.error || `The server answered ${answer.status}.`, answer.headers.get("Retry-After"));
  return content;
}

// --- answers ---

function passage(answer) {
  // Spans count code points; JavaScript's strings count UTF-16 units.
  const characters = Array.from(answer.text);
  const [start, stop] = answer.marked;
  const part = (from, to) => characters.slice(from, to).join("");
  const text = element("p", { class: "passage" }, part(0, start), element("mark", {}, part(start, stop)), part(stop));
  if (characters.length <= LONG || stop > LONG / 2) return [text];
  text.classList.add("closed");
  const more = element("button", { class: "more", type: "button", "aria-expanded": "false" }, "Show the whole passage");
  more.addEventListener("click", () => {
    const closed = text.classList.toggle("closed");
    more.setAttribute("aria-expanded", String(!closed));
    more.textContent = closed ? "Show the whole passage" : "Show less";
  });
  return [text, more];
}

function sourceOf(answer) {
  let url;
  try {
    url = new URL(answer.source);
  } catch {
    return element("span", { class: "source" }, answer.source);
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return element("span", { class: "source" }, answer.source);
  return element("a", { class: "source", href: url.href, rel: "noreferrer noopener" }, answer.source);
}

function retrievedBy(answer) {
  const ranks = [["BM25 rank", answer.bm25_rank], ["dense rank", answer.dense_rank]].filter(([, rank]) => rank !== null);
  return ranks.map(([name, rank]) => `${name} ${rank}`).join(", ") || "beside a passage that was found";
}

function card(answer, others, otherName) {
  const percent = `${Math.round(answer.probability * 100)}%`;
  const score = element("span", { class: "score", title: `log-odds ${answer.score.toFixed(3)}` },
    element("meter", { min: "0", max: "1", value: String(answer.probability), "aria-label": `Score ${percent}` }),
    element("span", {}, percent, element("span", { class: "quiet" }, ` (${answer.score.toFixed(2)})`)));
  const facts = element("p", { class: "facts" }, score, element("span", {}, retrievedBy(answer)));
  if (others) {
    const place = others.find((one) => one.passage_id === answer.passage_id);
    facts.append(element("span", {}, place ? `${otherName}'s rank ${place.rank}` : `not among the ${otherName}'s`));
  }
  if (answer.window) facts.append(element("span", {}, `long passage; characters ${answer.window[0]}–${answer.window[1]} scored best`));
  facts.append(sourceOf(answer));
  const path = answer.heading_path.filter((name) => name !== answer.title).join(" › ");
  return element("li", { class: "answer", tabindex: "-1" },
    element("article", { "aria-label": `Answer ${answer.rank}` },
      element("h3", {}, answer.title || answer.source),
      ...(path ? [element("p", { class: "path quiet" }, path)] : []),
      ...passage(answer), facts));
}

function timing(found) {
  const times = found.milliseconds;
  const said = (value) => (value < 10 ? `${value.toFixed(1)} ms` : value < 10000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
  const one = (name, value) => element("li", {}, `${name} `, element("b", {}, said(value)));
  return element("ul", { class: "timing", "aria-label": "Time by stage" },
    ...["retrieve", "rank", "mark", "total"].filter((name) => name in times).map((name) => one(name, times[name])),
    element("li", {}, `${found.candidates} passages ranked`));
}

function column(found, title, others, otherName) {
  const made = element("section", { class: "column" });
  if (title) made.append(element("h2", {}, title));
  made.append(timing(found), element("ol", { class: "answers" }, ...found.answers.map((one) => card(one, others, otherName))));
  return made;
}

function show(student, teacher) {
  const both = Boolean(teacher);
  document.body.classList.toggle("wide", both);
  const notices = [];
  if (student.truncated) notices.push(element("div", { class: "notice", id: "truncated" }, element("p", {}, "This question is longer than the student reads; its end was not read.")));
  if (!student.answered) {
    const text = student.answers.length ? "Nothing in these documents seems to answer this. The nearest passages are below." : "Nothing in these documents has words of this question.";
    notices.push(element("div", { class: "notice", id: "no-answer" }, element("p", {}, element("strong", {}, "No answer found. "), text)));
  }
  const columns = student.answers.length ? [column(student, both ? "Student" : "", both ? teacher.answers : null, "teacher")] : [];
  if (both && teacher.answers.length) columns.push(column(teacher, "Teacher", student.answers, "student"));
  $("results").replaceChildren(...notices, element("div", { class: both ? "columns two" : "columns" }, ...columns));
  const count = student.answers.length;
  $("status").textContent = student.answered ? `${count} ${count === 1 ? "answer" : "answers"}, best first` : "";
}

function clear() {
  asked += 1;
  document.body.classList.remove("wide");
  $("results").replaceChildren();
  $("status").textContent = "";
  $("problem").hidden = true;
  $("go").disabled = false;
}

function fail(problem) {
  if (problem.status === 401) {
    $("key-form").hidden = false;
    $("status").textContent = sessionStorage.getItem("key") ? "That key was not accepted." : "";
    $("key").focus();
    return;
  }
  const wait = problem.retryAfter ? ` Try again in ${problem.retryAfter} s.` : "";
  const again = element("button", { type: "button" }, "Try again");
  again.addEventListener("click", () => ask($("question").value, false));
  const retry = problem.status === 0 || problem.status >= 429 ? [again] : [];
  $("problem").replaceChildren(element("p", {}, element("strong", {}, "That did not work. "), problem.message + wait), ...retry);
  $("problem").hidden = false;
  $("status").textContent = "";
}

async function ask(text, remember = true) {
  clear();
  const question = text.trim();
  if (!question) {
    $("status").textContent = "Type a question first.";
    $("question").focus();
    return;
  }
  const mine = asked;
  if (remember) history.pushState({ question }, "", `?q=${encodeURIComponent(question)}`);
  document.title = `${question} · tmkd`;
  $("status").textContent = "Searching…";
  $("go").disabled = true;
  try {
    const student = await call("ask", { question });
    if (mine !== asked) return;
    show(student, null);
    if ($("compare").checked) {
      $("status").textContent = "The teacher is reading the same passages…";
      const teacher = await call("ask", { question, ranker: "teacher" });
      if (mine === asked) show(student, teacher);
    }
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (mine === asked) fail(problem);
  } finally {
    if (mine === asked) $("go").disabled = false;
  }
}

// --- keyboard, theme, start ---

function move(step) {
  const cards = Array.from(document.querySelectorAll(".answer"));
  if (!cards.length) return false;
  const place = cards.indexOf(document.activeElement.closest(".answer"));
  const next = place + step;
  if (next < 0) $("question").focus();
  else cards[Math.min(next, cards.length - 1)].focus();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = ["INPUT", "TEXTAREA"].includes(event.target.tagName);
  const down = event.key === "ArrowDown" || (event.key === "j" && !typing);
  const up = event.key === "ArrowUp" || (event.key === "k" && !typing);
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("question").select();
    $("question").focus();
  } else if (event.key === "Escape") {
    clear();
    $("question").value = "";
    $("question").focus();
    document.title = "tmkd: ask a question";
    history.replaceState(null, "", root);
  } else if ((down || up) && event.target.id !== "key" && move(down ? 1 : -1)) {
    event.preventDefault();
  }
});

function theme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("theme", name);
}

async function begin() {
  try {
    const info = await call("info");
    $("key-form").hidden = true;
    const index = info.index;
    const found = index && index.states ? "BM25 and dense search" : "BM25";
    $("about").textContent = index ? `${info.model_id}, ${index.passages.toLocaleString("en")} passages, found by ${found}` : `${info.model_id}, no documents`;
    $("compare-line").hidden = !info.teacher;
    if (!index) {
      fail(new Problem(404, "This server has no documents; start it with --index to ask questions here."));
      return;
    }
  } catch (problem) {
    fail(problem);
    return;
  }
  const question = new URLSearchParams(location.search).get("q");
  if (question) {
    $("question").value = question;
    ask(question, false);
  }
}

const kept = localStorage.getItem("theme");
if (kept === "dark" || kept === "light") theme(kept);
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  theme(dark ? "light" : "dark");
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  $("key").value = "";
  begin();
});
$("compare").addEventListener("change", () => {
  if ($("question").value.trim()) ask($("question").value, false);
});
addEventListener("popstate", () => {
  const question = new URLSearchParams(location.search).get("q") || "";
  $("question").value = question;
  if (question) ask(question, false);
  else clear();
});
if (matchMedia("(hover: hover)").matches) $("question").focus();
begin();
