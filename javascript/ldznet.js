// In A1111 and the Forges: what became of a run, from the host's lines below its pictures into the section. No event of
// gradio tells of it: in gradio 4 "change" of an HTML component comes whenever the page is drawn, without an end.

onAfterUiUpdate(() => {
    for (const tab of ["txt2img", "img2img"]) {
        const log = gradioApp().querySelector(`#html_log_${tab}`);
        const ran = [...gradioApp().querySelectorAll(`#ldznet_${tab}_ran`)].pop(); // in gradio 3 a frame has it too
        if (!log || !ran) continue;
        const lines = [...log.innerHTML.matchAll(/LD-ZNet: ([^<\n]+)/g)].map((match) => `<p>${match[1].trim()}</p>`);
        if (ran.dataset.lines === lines.join("")) continue;
        ran.dataset.lines = lines.join("");
        ran.querySelector(".ldznet-ran")?.remove();
        const shown = document.createElement("div");
        shown.className = "ldznet-ran";
        shown.innerHTML = lines.join(""); // escaped as the host has it
        ran.append(shown);
    }
});
