"""The jobs that AWS IoT has for one thing, by the pages "Jobs device MQTT API" and "Jobs notifications"."""

import json
import re
import time

ENDED = ("SUCCEEDED", "FAILED", "REJECTED", "CANCELED", "TIMED_OUT", "REMOVED")
TO_SAY = ("IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED")
DETAILS = 10
START_FIELDS = {"clientToken", "statusDetails", "stepTimeoutInMinutes"}
UPDATE_FIELDS = START_FIELDS | {
    "status", "expectedVersion", "executionNumber", "includeJobExecutionState", "includeJobDocument"}


class Wrong(Exception):
    def __init__(self, code, message="", execution=None):
        super().__init__(code)
        self.code, self.message, self.execution = code, message, execution


class Jobs:
    def __init__(self, violation):
        self.violation, self.list, self.next_told, self.number = violation, [], None, {}

    def state(self):
        return {"jobs": [{key: one[key] for key in ("jobId", "executionNumber", "status", "statusDetails",
                                                    "versionNumber", "starts")} for one in self.list]}

    def pending(self):
        open_ones = [one for one in self.list if one["status"] not in ENDED]
        # Those in progress first, each in the order in which they were made.
        return sorted(open_ones, key=lambda one: one["status"] != "IN_PROGRESS")

    def order(self, order):
        now = int(time.time())
        if order["order"] == "queue":
            number = self.number[order["id"]] = self.number.get(order["id"], 0) + 1
            self.list.append({"jobId": order["id"], "jobDocument": order["document"], "status": "QUEUED",
                              "statusDetails": {}, "queuedAt": now, "lastUpdatedAt": now, "versionNumber": 1,
                              "executionNumber": number, "starts": 0})
        elif order["order"] == "cancel":
            one = self.last(order["id"])
            one["status"], one["lastUpdatedAt"] = "CANCELED", now
            one["versionNumber"] += 1
        else:
            raise ValueError(order)
        return self.notices(is_list=True)

    def last(self, job):
        found = [one for one in self.list if one["jobId"] == job]
        if not found:
            raise Wrong("ResourceNotFound", f"No execution of job {job}")
        return found[-1]

    def data(self, one, with_document=True):
        fields = ["jobId", "status", "queuedAt", "startedAt", "lastUpdatedAt", "versionNumber", "executionNumber"]
        fields += ["jobDocument"] if with_document else []
        shown = {field: one[field] for field in fields if field in one}
        return shown | ({"statusDetails": one["statusDetails"]} if one["statusDetails"] else {})

    def notices(self, is_list):
        now, pending = int(time.time()), self.pending()
        answers = []
        if is_list:
            jobs = {}
            for one in pending[:15]:
                summary = ("jobId", "queuedAt", "startedAt", "lastUpdatedAt", "versionNumber", "executionNumber")
                jobs.setdefault(one["status"], []).append({key: one[key] for key in summary if key in one})
            answers.append(("notify", json.dumps({"timestamp": now, "jobs": jobs})))
        first = (pending[0]["jobId"], pending[0]["executionNumber"]) if pending else None
        # Not when its details change.
        if first != self.next_told:
            self.next_told = first
            next_one = {"execution": self.data(pending[0])} if pending else {}
            answers.append(("notify-next", json.dumps({"timestamp": now} | next_one)))
        return answers

    def refused(self, tail, text, code):
        return self.rejected(tail, self.token(text), Wrong(code, "as it was told to"))

    def token(self, text):
        try:
            said = json.loads(text)
        except ValueError:
            return {}
        return {"clientToken": said["clientToken"]} if isinstance(said, dict) and "clientToken" in said else {}

    def rejected(self, tail, token, wrong):
        about = {"code": wrong.code, "message": wrong.message, "timestamp": int(time.time())} | token
        if wrong.execution:
            about["executionState"] = self.execution_state(wrong.execution)
        return [(f"{tail}/rejected", json.dumps(about))]

    def execution_state(self, one):
        return {key: one[key] for key in ("status", "statusDetails", "versionNumber")}

    def request(self, tail, text):
        token = self.token(text)
        try:
            if tail == "start-next":
                return self.start_next(self.asked(text, START_FIELDS), token)
            update = re.fullmatch(r"([A-Za-z0-9_-]{1,64})/update", tail)
            if update:
                return self.update(update[1], self.asked(text, UPDATE_FIELDS), token, tail)
            raise Wrong("InvalidTopic", tail)
        except Wrong as wrong:
            # A job that has ended meanwhile is nobody's fault.
            if wrong.code not in ("InvalidStateTransition", "VersionMismatch"):
                self.violation(f"jobs {tail}: {wrong.code} {wrong.message}: {text[:300]}")
            return self.rejected(tail, token, wrong)

    def asked(self, text, fields):
        try:
            said = json.loads(text)
        except ValueError:
            raise Wrong("InvalidJson", "not JSON") from None
        if not isinstance(said, dict):
            raise Wrong("InvalidJson", "no object")
        if set(said) - fields:
            self.violation(f"unknown fields: {sorted(set(said) - fields)}")
        details = said.get("statusDetails", {})
        is_well = isinstance(details, dict) and len(details) <= DETAILS and all(
            re.fullmatch(r"[a-zA-Z0-9:_-]{1,128}", name) and isinstance(value, str)
            and re.fullmatch(r"[^\x00-\x1f\x7f-\x9f]{1,1024}", value) for name, value in details.items())
        if not is_well:
            raise Wrong("InvalidRequest", "statusDetails")
        return said

    def start_next(self, said, token):
        pending = self.pending()
        answer = {"timestamp": int(time.time())} | token
        if pending:
            one = pending[0]
            one["starts"] += 1
            if one["status"] == "QUEUED":
                one["status"], one["startedAt"] = "IN_PROGRESS", answer["timestamp"]
                one["statusDetails"] = said.get("statusDetails", {})
                one["versionNumber"] += 1
            answer["execution"] = self.data(one)
        return [("start-next/accepted", json.dumps(answer))] + self.notices(is_list=False)

    def update(self, job, said, token, tail):
        one = self.last(job)
        if said.get("status") not in TO_SAY:
            raise Wrong("InvalidRequest", f"status {said.get('status')!r}")
        if said.get("executionNumber", one["executionNumber"]) != one["executionNumber"]:
            raise Wrong("ResourceNotFound", "executionNumber")
        if one["status"] in ENDED:
            raise Wrong("InvalidStateTransition", f"it is {one['status']}", one)
        if int(said.get("expectedVersion", one["versionNumber"])) != one["versionNumber"]:
            raise Wrong("VersionMismatch", f"it is {one['versionNumber']}", one)
        one["status"] = said["status"]
        one["statusDetails"] = said.get("statusDetails", one["statusDetails"])
        one["versionNumber"] += 1
        one["lastUpdatedAt"] = int(time.time())
        answer = {"timestamp": one["lastUpdatedAt"]} | token
        if said.get("includeJobExecutionState"):
            answer["executionState"] = self.execution_state(one)
        return [(f"{tail}/accepted", json.dumps(answer))] + self.notices(is_list=one["status"] in ENDED)
