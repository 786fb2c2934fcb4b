"use strict";
// The API's description as a page, from /openapi.json.

const root = new URL("../", document.currentScript.src); // also behind a proxy that serves this below a path

const element = (name, text = "", kind = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};

function typeOf(schema) {
  if (!schema) return "";
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  if (schema.$ref) return schema.$ref.split("/").pop();
  return schema.type || "anything";
}

function limits(schema) {
  const found = [];
  if (schema.maxItems) found.push(`at most ${schema.maxItems.toLocaleString("en")}`);
  if (schema.maxLength) found.push(`at most ${schema.maxLength.toLocaleString("en")} characters`);
  if ("default" in schema && schema.default !== null) found.push(`unless given: ${JSON.stringify(schema.default)}`);
  return found.join(", ");
}

function fields(schema) {
  const table = element("table");
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const line = table.insertRow();
    line.append(element("th", name + ((schema.required || []).includes(name) ? " *" : "")));
    line.append(element("td", typeOf(field)), element("td", [field.description, limits(field)].filter(Boolean).join("; ").replaceAll("`", "")));
  }
  return table;
}

function route(path, method, what, schemas) {
  const made = element("section", "", "route");
  made.append(element("h2", `${method.toUpperCase()} ${path}`), element("p", what.description || "", "quiet"));
  const reference = what.requestBody && what.requestBody.content["application/json"].schema.$ref;
  if (reference) {
    const schema = schemas[reference.split("/").pop()];
    made.append(fields(schema));
    const example = JSON.stringify(schema.examples[0], null, 1).replaceAll("'", "'\\''");
    made.append(element("pre", `curl ${new URL(path.slice(1), root)} -H 'Content-Type: application/json' -d '${example}'`));
  }
  const answers = Object.entries(what.responses || {}).filter(([status]) => status !== "200");
  if (answers.length > 1) made.append(element("p", answers.map(([status, one]) => `${status}: ${one.description}`).join(" · "), "quiet"));
  return made;
}

async function begin() {
  const key = sessionStorage.getItem("key");
  const answer = await fetch(new URL("openapi.json", root), { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!answer.ok) {
    document.getElementById("about").textContent = answer.status === 401 ? "This server asks for an API key; give it on the first page." : "The description cannot be read.";
    return;
  }
  const found = await answer.json();
  document.getElementById("about").textContent = found.info.description.replaceAll("`", "");
  for (const [path, methods] of Object.entries(found.paths))
    for (const [method, what] of Object.entries(methods))
      document.getElementById("routes").append(route(path, method, what, found.components.schemas));
}

begin();
