// Talking to the server over HTTP.

export const API = "/api/v1";

/** The answer to a request, as JSON. Throws an Error with the server's own sentence, and `status`. */
export async function call(method, address, body, { signal } = {}) {
  const options = { method, signal };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "content-type": "application/json" };
  }
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(answer.error || `The server answered ${response.status}.`);
    error.status = response.status;
    error.answer = answer;
    throw error;
  }
  return answer;
}

/** GET of an address below /api/v1, with the values of `query` that are not null, undefined or "";
 *  a list gives its name several times. */
export function get(address, query = {}, options = {}) {
  const text = queryText(query);
  return call("GET", `${API}${address}${text ? `?${text}` : ""}`, undefined, options);
}

export const post = (address, body) => call("POST", `${API}${address}`, body);

export function queryText(query) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") params.append(name, one);
    }
  }
  return params.toString();
}
