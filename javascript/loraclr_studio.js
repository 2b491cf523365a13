// LoRACLR: what stands around a merge: trying it, the history, arrangements, and the cards of the Lora tabs. As loraclr.js.

// First input: a task id. Nobody who loads the page anew waits for what was only tried.
function loraclrTry(...inputs) {
    inputs[0] = randomId().replace("(", "(" + loraclrPage() + "-");
    loraclrWatch(inputs[0], 40, "loraclr_tried");
    return inputs;
}

// First inputs: a task id, the table. Its end is told to a page that was loaded anew, as a merge's is.
function loraclrFurther(...inputs) {
    inputs[0] = randomId().replace("(", "(" + loraclrPage() + "-");
    inputs[1] = loraclrRows();
    localSet("loraclr_task_id", inputs[0]);
    loraclrWatch(inputs[0], 40);
    return inputs;
}

// Where one of two pictures of the same seed ends and the other begins.
function loraclrCompare(slider) {
    slider.closest(".loraclr-ab").style.setProperty("--loraclr-at", slider.value + "%");
}

// The merge of the history that the form is filled from. First input: which.
let loraclrWanted = "";
function loraclrHistory(...inputs) {
    inputs[0] = loraclrWanted;
    return inputs;
}

// First inputs: whose page it is, and which merge of the queue is meant.
let loraclrUnqueued = "";
function loraclrOwner(...inputs) {
    inputs[0] = "task(" + loraclrPage() + "-)";
    if (inputs.length > 1) inputs[1] = loraclrUnqueued;
    return inputs;
}

// First inputs: whose page it is, the table.
function loraclrEnqueue(...inputs) {
    inputs[0] = "task(" + loraclrPage() + "-)";
    inputs[1] = loraclrRows();
    return inputs;
}

// The queue was drawn anew: while something waits in it, look again; what was kept in it is listed at once.
let loraclrKeptInQueue = null;
let loraclrLook = null;
function loraclrQueued() {
    const queue = gradioApp().querySelector("#loraclr_queue_view .loraclr-queue");
    const kept = Number(queue?.dataset.kept || 0);
    if (loraclrKeptInQueue !== null && kept > loraclrKeptInQueue) {
        loraclrRefreshCards();
        gradioApp().getElementById("loraclr_opened").click();
    }
    clearTimeout(loraclrLook);
    const fold = gradioApp().querySelector("#loraclr_queue > .label-wrap");
    // who comes back in the morning sees what was made
    if (queue && loraclrKeptInQueue === null && !fold.classList.contains("open")) fold.click();
    if (queue?.dataset.busy === "1") {
        loraclrLook = setTimeout(() => gradioApp().getElementById("loraclr_queue_look")?.click(), 2000);
    }
    loraclrKeptInQueue = kept;
}

// A style's ticks as what its row hands over: the subjects that it is applied to, one per line, and nothing for all.
function loraclrApplied(row) {
    const field = row.querySelector("[data-field='applied_to']");
    if (!field) return;
    const ticks = Array.from(row.querySelectorAll(".loraclr-applied [data-subject]")).filter((tick) => !tick.hidden);
    // a style that is applied to nothing is none: without any tick it is for all again
    if (!ticks.some((tick) => tick.querySelector("input").checked)) {
        for (const tick of ticks) tick.querySelector("input").checked = true;
    }
    const chosen = ticks.filter((tick) => tick.querySelector("input").checked);
    field.value = chosen.length === ticks.length ? "" : chosen.map((tick) => tick.dataset.subject).join("\n");
}

// The kind of a row was changed: other fields belong to it, and styles may be applied to it or not any more.
function loraclrKinds(tab) {
    const rows = Array.from(tab.querySelectorAll(".loraclr-concept"));
    for (const row of rows) row.dataset.kind = row.querySelector("[data-field='kind']").value;
    const subjects = rows.filter((row) => row.dataset.kind === "subject").map((row) => row.dataset.lora);
    for (const row of rows) {
        for (const tick of row.querySelectorAll("[data-subject]")) tick.hidden = !subjects.includes(tick.dataset.subject);
        loraclrApplied(row);
    }
}

// What stands in txt2img and would be reset by an infotext that does not name it. Last input: that, as JSON.
function loraclrNow(...inputs) {
    const field = (name) => gradioApp().querySelector(`#txt2img_${name}`)?.value || "";
    const now = {
        "Negative prompt": field("neg_prompt textarea"),
        // a list to choose from, or all of them side by side
        "Sampler": field("sampling input:checked") || field("sampling input"),
        "Schedule type": field("scheduler input"),
    };
    if (gradioApp().querySelector("#txt2img_hr-checkbox input")?.checked) {
        now["Denoising strength"] = field("denoising_strength input");
        now["Hires upscale"] = field("hr_scale input");
    }
    inputs[inputs.length - 1] = JSON.stringify(now);
    return inputs;
}

// The WebUI pastes what was arranged, and shows txt2img; but Forge Neo pastes no prompt.
function loraclrPaste(infotext) {
    if (!infotext) return;
    const prompt = gradioApp().querySelector("#txt2img_prompt textarea");
    prompt.value = infotext.slice(0, infotext.lastIndexOf("\nNegative prompt:"));
    updateInput(prompt);
    gradioApp().getElementById("loraclr_paste").click();
}

// The card that was added last. First input: its LoRA's name.
let loraclrCard = "";
function loraclrAdded(...inputs) {
    inputs[0] = loraclrCard;
    return inputs;
}

// On the cards of the Lora tabs, beside the WebUI's own buttons: add this LoRA to what is merged.
function loraclrCards() {
    for (const row of gradioApp().querySelectorAll("[id$='_lora_cards'] .card .button-row:not(.loraclr-has)")) {
        row.classList.add("loraclr-has");
        const button = document.createElement("div");
        button.className = "card-button loraclr-card";
        button.title = "Add to LoRACLR";
        button.textContent = "⊕";
        button.addEventListener("click", (event) => {
            event.stopPropagation();
            loraclrCard = row.closest(".card").dataset.name;
            const tabs = gradioApp().querySelectorAll("#tabs > .tab-nav > button");
            Array.from(tabs).find((tab) => tab.textContent.trim() === "LoRACLR")?.click();
            gradioApp().getElementById("loraclr_add").click();
        });
        row.prepend(button);
    }
}

onAfterUiUpdate(function() {
    if (loraclrHere()) loraclrCards();
});

// The merged LoRA that is added to. First input: its name.
let loraclrAdds = "";
function loraclrAddTo(...inputs) {
    inputs[0] = loraclrAdds;
    return inputs;
}

// The form was filled from what stands below it: where the columns are one, it is out of sight.
function loraclrToForm() {
    if (window.innerWidth <= 700) gradioApp().getElementById("loraclr_pick").scrollIntoView({behavior: "smooth"});
}

// A checkpoint that was kept is nothing to add to.
function loraclrAddable(kept) {
    const button = gradioApp().getElementById("loraclr_add_to_kept");
    if (button && kept) button.style.display = JSON.parse(kept).tag ? "" : "none";
}

onUiLoaded(function() {
    const tab = gradioApp().getElementById("tab_loraclr");
    if (!loraclrHere()) return;
    tab.addEventListener("click", (event) => {
        const merged = event.target.closest(".loraclr-add-to");
        if (merged) {
            loraclrAdds = merged.dataset.lora;
            gradioApp().getElementById("loraclr_add_to_button").click();
        }
        if (event.target.closest(".loraclr-add-to-nothing")) gradioApp().getElementById("loraclr_add_to_ended").click();
    });
});
