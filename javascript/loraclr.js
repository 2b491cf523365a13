// LoRACLR: what gradio cannot do. Every global starts with "loraclr".

// Where the WebUI is one that this cannot work in, the tab only says so.
function loraclrHere() {
    return gradioApp().getElementById("loraclr_opened") !== null;
}

// The rows that Python drew, as they are now.
function loraclrRows() {
    const table = gradioApp().querySelector("#loraclr_rows .loraclr-rows");
    const rows = Array.from(gradioApp().querySelectorAll("#loraclr_rows .loraclr-concept")).map((row) => {
        const values = {lora: row.dataset.lora};
        row.querySelectorAll("[data-field]").forEach((field) => {
            values[field.dataset.field] = field.value;
        });
        return values;
    });
    return JSON.stringify({taken: table ? table.dataset.taken : "", rows: rows});
}

// Something was typed into the table: one weight is for both parts of a row that has not two, and words that a person wrote are
// no guess.
function loraclrTyped(tab, field) {
    if (field.dataset.all && field.value !== "") {
        tab.querySelectorAll(".loraclr-concept .loraclr-weights input").forEach((other) => {
            other.value = field.value;
        });
    }
    const weights = field.closest(".loraclr-concept .loraclr-weights:not(.loraclr-apart)");
    if (weights) {
        weights.querySelectorAll("input").forEach((other) => {
            other.value = field.value;
        });
    }
    if (field.dataset.field === "kind") loraclrKinds(tab);
    if (field.closest(".loraclr-applied")) loraclrApplied(field.closest(".loraclr-concept"));
    if (field.dataset.field === "trigger") {
        const mark = field.parentNode.querySelector(".loraclr-guessed");
        if (mark) mark.remove();
    }
}

// One weight for both parts, or one for each.
function loraclrSplit(weights) {
    const [both, unet] = weights.querySelectorAll("input");
    if (!weights.classList.toggle("loraclr-apart")) unet.value = both.value;
}

// The names that begin with what is typed come before those that have it inside, and the very name before all: gradio keeps the
// order of the list. What it looks at for that is folder, name and alias in one text.
function loraclrRank(item, typed) {
    const text = (item.dataset.value || item.getAttribute("aria-label") || item.textContent).trim().toLowerCase();
    const name = text.split("  ·  ")[0].split("/").pop();
    return name === typed ? 0 : name.startsWith(typed) ? 1 : text.startsWith(typed) ? 2 : 3;
}

function loraclrOptions(picker) {
    const typed = picker.querySelector("input").value.trim().toLowerCase();
    const items = Array.from(picker.querySelectorAll("ul.options li")).filter((item) => item.offsetParent);
    const ranked = items.map((item, place) => [typed ? loraclrRank(item, typed) : 0, place, item]);
    return ranked.sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((entry) => entry[2]);
}

// Shows the choices in that order, and the one that Enter takes; keys go by what is seen.
function loraclrSort(picker) {
    if (!picker.querySelector("ul.options")) return;
    const items = loraclrOptions(picker);
    const typed = picker.querySelector("input").value;
    if (picker.dataset.typed !== typed) picker.dataset.active = 0;
    picker.dataset.typed = typed;
    items.forEach((item, place) => {
        item.style.order = place;
        item.classList.toggle("loraclr-active", typed !== "" && place === Number(picker.dataset.active));
    });
}

// Whether a key was one that goes through the choices or takes one. Where nothing is typed gradio's own order is the right one.
function loraclrChoose(picker, key) {
    const items = picker.querySelector("ul.options") ? loraclrOptions(picker) : [];
    if (!items.length || picker.querySelector("input").value === "") return false;
    const active = Math.min(Number(picker.dataset.active) || 0, items.length - 1);
    if (key === "Enter") {
        items[active].dispatchEvent(new MouseEvent("mousedown", {bubbles: true, cancelable: true}));
        return true;
    }
    const step = {ArrowDown: 1, ArrowUp: -1}[key];
    if (!step) return false;
    picker.dataset.active = (active + step + items.length) % items.length;
    loraclrSort(picker);
    items[Number(picker.dataset.active)].scrollIntoView({block: "nearest"});
    return true;
}

// The WebUI gives every text on the page that is also one of its own labels that label's tooltip, a second after it appeared.
function loraclrOwnTips(tab) {
    for (const [name, text] of Object.entries(loraclrTips)) {
        const fold = tab.querySelector(`#loraclr_${name} > .label-wrap`);
        if (fold) fold.title = text;
    }
    if (typeof titles !== "object") return;
    for (const node of tab.querySelectorAll("span, button, p, input, li.item")) {
        const theirs = titles[node.textContent] || titles[node.value] || titles[node.dataset.value];
        if (!theirs || (node.title && node.title !== theirs)) continue;
        const told = node.parentNode.closest("[title]:not([title=''])");
        node.title = told && tab.contains(told) ? told.title : node.textContent || node.value;
    }
}

onUiUpdate(function() {
    const picker = gradioApp().getElementById("loraclr_loras");
    if (picker) loraclrSort(picker);
});

onAfterUiUpdate(function() {
    const tab = gradioApp().getElementById("tab_loraclr");
    if (tab && loraclrHere()) loraclrOwnTips(tab);
});

// First input: the table.
function loraclrTable(...inputs) {
    inputs[0] = loraclrRows();
    return inputs;
}

// Where the columns stand below each other, what happens is out of sight.
function loraclrReveal() {
    if (window.innerWidth <= 700) {
        gradioApp().getElementById("loraclr_results").scrollIntoView({behavior: "smooth"});
    }
}

// First inputs: a task id, the table.
function loraclrCollect(...inputs) {
    loraclrReveal();
    inputs[0] = "";
    inputs[1] = loraclrRows();
    return inputs;
}

// First input: txt2img's prompt.
function loraclrPrompt(...inputs) {
    inputs[0] = gradioApp().querySelector("#txt2img_prompt textarea").value;
    return inputs;
}

function loraclrShow(button) {
    for (const name of ["interrupt", "interrupting"]) {
        const shown = gradioApp().getElementById("loraclr_" + name);
        // Reload UI takes the page away while the bar still waits for an answer
        if (shown) shown.style.display = name === button ? "block" : "none";
    }
}

let loraclrWatched = null;
// The task that went on while the page was loaded anew, once it is over.
let loraclrOver = "";

// First input: the task that is watched.
function loraclrTask() {
    return [loraclrWatched || ""];
}

// What is said beside the bar, and where the page is narrow Interrupt, which is out of sight above: the WebUI writes into the bar itself, which is as narrow as little has been done.
function loraclrSay(bar, text) {
    let line = bar.querySelector(".loraclr-doing");
    if (!line) {
        line = document.createElement("div");
        line.className = "loraclr-doing";
        line.setAttribute("role", "status");
        const stop = document.createElement("button");
        stop.className = "loraclr-stop";
        stop.textContent = "Interrupt";
        stop.addEventListener("click", () => gradioApp().getElementById("loraclr_interrupt").click());
        bar.append(line, stop);
    }
    line.textContent = text;
}

// The bar, and Interrupt in place of Merge, until the task is over.
function loraclrWatch(id, patience, where = "loraclr_bar_anchor") {
    const anchor = gradioApp().getElementById(where);
    loraclrWatched = id;
    loraclrShow("interrupt");
    requestProgress(id, anchor, null, () => {
        if (loraclrWatched !== id) return;
        loraclrShow(null);
        localRemove("loraclr_task_id");
        loraclrWatched = null;
        if (patience) return;
        loraclrOver = id;
        gradioApp().getElementById("loraclr_opened")?.click();
    }, (answer) => {
        const bar = anchor.parentNode.querySelector(".progressDiv");
        if (!bar) return;
        const percent = answer.progress > 0 ? ` · ${(100 * answer.progress).toFixed(0)} %` : "";
        bar.querySelector(".progress").textContent = "";
        const begun = answer.active || answer.queued;
        loraclrSay(bar, (begun && answer.textinfo || "Getting ready") + percent);
    }, patience);
    loraclrSay(anchor.parentNode.querySelector(".progressDiv"), "Getting ready");
}

// Names this browser in the ids of its tasks, so that everybody is shown their own results.
function loraclrPage() {
    let page = localGet("loraclr_page");
    if (!page) {
        page = Math.random().toString(36).slice(2, 12);
        localSet("loraclr_page", page);
    }
    return page;
}

// Second input: the task whose end this page has not been told, or that it waits for, or one that only says whose it is.
function loraclrLost(...inputs) {
    inputs[1] = loraclrOver || localGet("loraclr_task_id") || "task(" + loraclrPage() + "-)";
    loraclrOver = "";
    return inputs;
}

// First input: what a merge was asked for that this page has lost sight of. It stands in the page again unless something has been
// chosen there.
function loraclrAgain(asked, ...now) {
    return asked && !(now[0] || []).length ? JSON.parse(asked) : now;
}

// Ask again where an answer is for another selection than the picker has by now.
function loraclrSettle(chosen, answered) {
    if (answered && JSON.stringify(JSON.parse(answered)) !== JSON.stringify(chosen || [])) {
        gradioApp().getElementById("loraclr_again").click();
    }
}

function loraclrSubmit(...inputs) {
    const id = randomId().replace("(", "(" + loraclrPage() + "-");
    loraclrReveal();
    localSet("loraclr_task_id", id);
    loraclrWatch(id, 40);
    inputs[0] = id;
    inputs[1] = loraclrRows();
    return inputs;
}

// A LoRA was kept: the Lora tabs list it at once. A checkpoint was kept: so does the menu of checkpoints.
function loraclrKept(kept) {
    if (!kept) return;
    loraclrAddable(kept);
    const checkpoints = gradioApp().getElementById("refresh_sd_model_checkpoint");
    if (!JSON.parse(kept).tag && checkpoints) checkpoints.click();
    loraclrRefreshCards();
}

function loraclrRefreshCards() {
    for (const name of ["txt2img", "img2img"]) {
        const button = gradioApp().getElementById(name + "_lora_extra_refresh_internal");
        if (button) button.dispatchEvent(new Event("click"));
    }
}

// Whether a prompt has these words in it, as words of their own.
function loraclrHas(prompt, words) {
    const literal = words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return new RegExp("(^|[^\\p{L}\\p{N}_])" + literal + "($|[^\\p{L}\\p{N}_])", "iu").test(prompt);
}

// What was merged would act twice beside the merge: its tags make room.
function loraclrSend(kept, arrangement) {
    if (arrangement !== "One prompt") {
        gradioApp().getElementById("loraclr_arrange").click();
        return;
    }
    const {tag, triggers, inputs} = JSON.parse(kept);
    const prompt = gradioApp().querySelector("#txt2img_prompt textarea");
    const merged = (whole, name) => tag && inputs.includes(name.trim()) ? "" : whole;
    const cleared = prompt.value.replace(/<(?:lora|lyco):([^:>]+)[^>]*>/gi, merged);
    const parts = cleared.split(",").map((part) => part.trim().replace(/\s+/g, " ")).filter(Boolean);
    const words = cleared === prompt.value ? cleared.trim().replace(/,$/, "") : parts.join(", ");
    const missing = triggers.filter((trigger) => !loraclrHas(words, trigger));
    if (tag && !words.includes(tag)) missing.push(tag);
    prompt.value = [words, ...missing].filter(Boolean).join(", ");
    updateInput(prompt);
    switch_to_txt2img();
}

function loraclrCopy(kept) {
    const {tag, triggers} = JSON.parse(kept);
    const text = [...triggers, tag].filter(Boolean).join(", ");
    const button = gradioApp().getElementById("loraclr_copy");
    button.dataset.label = button.dataset.label || button.textContent;
    const done = () => {
        button.textContent = "Copied";
        setTimeout(() => {
            button.textContent = button.dataset.label;
        }, 1200);
    };
    if (navigator.clipboard) {
        navigator.clipboard.writeText(text).then(done, () => loraclrCopyByHand(text, done));
    } else {
        loraclrCopyByHand(text, done);
    }
}

// Where the page is not served securely there is no clipboard to write to.
function loraclrCopyByHand(text, done) {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.appendChild(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    done();
}

// gradio's folds take no tooltip; some are made when they are first seen.
const loraclrTips = {
    prompts: "What the model is asked with each concept, and without any",
    output: "What is written, and in which precision",
    try: "Pictures of a prompt of your own, before anything is written",
    further: "More steps from this result on, which stays beside it",
    try_how: "Of the pictures that are tried",
    queue: "Merges one after the other, as for a night, each kept as soon as it is finished",
    history: "What was kept here, and from files that were merged elsewhere; the form can be filled from each",
    advanced: "Method, rank and options; what is recorded; memory and seed",
};

onUiLoaded(function() {
    const tab = gradioApp().getElementById("tab_loraclr");
    if (!loraclrHere()) return;
    tab.addEventListener("input", (event) => {
        if (event.target.closest(".loraclr-ab")) loraclrCompare(event.target);
        else loraclrTyped(tab, event.target);
    });
    tab.addEventListener("click", (event) => {
        const split = event.target.closest(".loraclr-split");
        if (split) loraclrSplit(split.closest(".loraclr-weights"));
        const made = event.target.closest(".loraclr-again[data-entry]");
        if (made) {
            loraclrWanted = made.dataset.entry;
            gradioApp().getElementById("loraclr_history_again").click();
        }
        const queued = event.target.closest(".loraclr-unqueue");
        if (queued) {
            loraclrUnqueued = queued.dataset.job;
            gradioApp().getElementById("loraclr_queue_remove").click();
        }
        if (event.target.closest(".loraclr-empty-queue")) gradioApp().getElementById("loraclr_queue_empty").click();
        if (event.target.closest(".loraclr-close")) event.target.closest(".loraclr-note").remove();
    });
    // gradio's picker takes Enter for a choice whatever is held down with it, and the WebUI takes Esc for Interrupt although it
    // closes a list. Before either hears of them, hence "capture".
    tab.addEventListener("keydown", (event) => {
        const picker = event.target.closest("#loraclr_loras");
        if (!event.isTrusted || !picker) return;
        const merges = event.key === "Enter" && (event.ctrlKey || event.metaKey);
        const closes = event.key === "Escape" && picker.querySelector("ul.options");
        const chooses = !merges && loraclrChoose(picker, event.key);
        if (!(merges || closes || chooses)) return;
        event.stopPropagation();
        event.preventDefault();
        if (chooses) return;
        event.target.blur();
        if (merges) tab.dispatchEvent(new KeyboardEvent("keydown", event));
    }, true);
    gradioApp().getElementById("loraclr_interrupt").addEventListener("click", () => loraclrShow("interrupting"));
    // Merging again, or comparing, would discard a result that nobody decided on. Before gradio hears of the click, hence "capture".
    tab.addEventListener("click", (event) => {
        const button = event.target.closest("#loraclr_generate, #loraclr_compare");
        const decide = gradioApp().getElementById("loraclr_decide");
        const waiting = decide && decide.offsetParent !== null;
        if (button && waiting && !confirm("The last result has not been kept. Discard it?")) {
            event.stopPropagation();
            event.preventDefault();
        }
    }, true);
});

function loraclrIsShown() {
    const shown = get_uiCurrentTabContent();
    return shown && shown.id === "tab_loraclr" && loraclrHere();
}

// Another checkpoint was chosen above the tabs: other LoRAs fit, and it is as fast as it is.
let loraclrCheckpoint = null;
onOptionsChanged(function() {
    const before = loraclrCheckpoint;
    loraclrCheckpoint = opts.sd_checkpoint_hash;
    if (before !== null && before !== loraclrCheckpoint && loraclrIsShown()) {
        gradioApp().getElementById("loraclr_opened")?.click();
    }
});

onUiTabChange(function() {
    if (loraclrIsShown()) {
        gradioApp().getElementById("loraclr_opened")?.click();
        // The page was loaded anew while a merge went on: show how far it is, then its result.
        const id = localGet("loraclr_task_id");
        if (id && !loraclrWatched) loraclrWatch(id, 0);
    }
});
